"""How the KV cache is kept: what `--kv` says, as data.

A policy is an element type (`f16`), a preset (`balanced`), or entries apart by semicolons:

    global=k:tq6,v:tq4; local=bf16; sink=16; recent=128

The left side of an entry says which layers: a number, a range (`3-7`), a kind of the architecture, `full` or `sliding`
(layers whose attention sees everything, or a window), `once` (those of `full` whose V is what K is made of), or `all`.
The more particular one holds; layers that none names keep bf16. Coded layers that see everything keep the first `sink`
and the latest `recent` positions in bf16, too. Entries after a preset (`balanced; sink=4`) hold in place of its own.

Where V is the projection that K is made of, both can be kept once: `kv:TYPE`, or `tqkv6r4` (V, and with it all of K but
its rotary part, in 6 bits, that part in 4; a scale for 128 values).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from .codecs import Codec, check_rotation, codec_named, is_codec
from .errors import BrioletteError
from .ir import Module, topological
from .opset.attention import CACHE_DTYPES
from .shared_kv import Once, once, turning_pairs

PRESETS = {
    "quality": "once=tqkv8r8;full=k:tq8,v:tq6;sliding=bf16;sink=16;recent=128",
    "balanced": "once=tqkv5r6;full=k:tq6,v:tq3;sliding=tq8;sink=16;recent=128",
    "compact": "once=tqkv5r5;full=k:tq5,v:tq2;sliding=k:tq6,v:tq5;sink=16;recent=128",
}
NEAR = "bf16"  # what the nearest positions, and the first, are kept in
STRUCTURAL = ("once", "full", "sliding", "all")
SWITCHES = {"scale": ("norm", "eden"), "rotate": ("on", "off")}
COUNTS = ("sink", "recent", "turning")
LEAST_SHARED, MOST_SHARED = 32, 128  # values that share a scale where K and V are kept once


@dataclass(frozen=True)
class Keep:
    """How the cache of one layer is kept: element types or codecs of K and V; how many positions from the first, and of
    the latest, are kept in bf16 beside the codes; whether vectors are rotated before they are coded. pairs: where K and
    V are kept once, how many pairs of dimensions of K are kept beside V."""

    k: str
    v: str
    sink: int = 0
    recent: int = 0
    rotate: bool = True
    pairs: int = 0

    def codec(self, plane: str) -> Codec | None:
        """A plane's codec; None where it keeps numbers."""
        dtype = {"k": self.k, "v": self.v}[plane]
        return codec_named(dtype) if is_codec(dtype) else None

    def rotates(self, plane: str) -> bool:
        return self.rotate and self.codec(plane) is not None

    @property
    def near(self) -> bool:
        """Whether some positions are kept in bf16 beside the codes."""
        return bool(self.sink or self.recent) and (self.codec("k") or self.codec("v")) is not None


@dataclass(frozen=True)
class Types:
    """The types of K and of V, as written; `once`: both kept once."""

    k: str
    v: str
    once: bool = False


@dataclass(frozen=True)
class Policy:
    """What a policy says. layers: which layers, as written, with the types of K and of V. turning: pairs of dimensions
    that rotary positions turn, where a file's frequencies leave the others alone. preset: whether `once` is a preset's,
    which leaves heads that are no blocks to `full`."""

    text: str
    layers: Mapping[str, Types] = field(default_factory=dict)
    sink: int = 16
    recent: int = 128
    turning: int | None = None
    rotate: bool = True
    preset: bool = False

    @property
    def coded(self) -> bool:
        """Whether some layers keep codes."""
        return any(is_codec(name) for types in self.layers.values() for name in (types.k, types.v))

    @property
    def once(self) -> bool:
        """Whether some layers keep K and V once."""
        return any(types.once for types in self.layers.values())

    def keeps(self, module: Module) -> dict[int, Keep]:
        """How each cache slot of an unrolled module is kept.

        Raises BrioletteError for layers that the module does not have, and for heads that a codec cannot take.
        """
        slots = _slots(module)
        kinds = {name: tuple(layers) for name, layers, _ in module.kinds}
        self._check(kinds, slots)
        shared = once(module) if self.once else {}
        found = {}
        for slot, of in slots.items():
            names = _names(slot, kinds, of.sliding, slot in shared)
            types, kind = self._types(slot, names), names[0]
            if types.once and self.preset and slot in shared and not self._blocks(shared[slot], of.sizes["v"]):
                types = self._types(slot, [name for name in names if name != "once"])
            keep = Keep(types.k, types.v, self.sink, self.recent, self.rotate)
            if of.sliding:
                keep = replace(keep, sink=0, recent=0)
            if types.once:
                keep = self._once(keep, shared.get(slot), of.sizes["v"], kind)
            for plane, size in of.sizes.items():
                self._fits(keep, plane, 2 * keep.pairs if keep.pairs and plane == "k" else size, kind)
            found[slot] = keep
        return found

    def _once(self, keep: Keep, found: Once | None, size: int, kind: str) -> Keep:
        """K and V kept once: rotary dimensions and all others fill blocks, each with its scale."""
        if found is None:
            raise BrioletteError(
                f"--kv: {kind} layers cannot keep K and V once: their V is not what K is made of; they can have "
                "k:TYPE,v:TYPE"
            )
        pairs, block = turning_pairs(found, self.turning), self._blocks(found, size)
        if not block and (is_codec(keep.k) or is_codec(keep.v)):
            raise BrioletteError(
                f"--kv: {kind} layers cannot keep K and V once in codes: {2 * pairs} rotary values, and {size} in "
                f"all, are no blocks of {LEAST_SHARED} or more; they can have kv:{', kv:'.join(CACHE_DTYPES)}"
            )
        k, v = (f"{name}_{block}" if is_codec(name) else name for name in (keep.k, keep.v))
        return replace(keep, k=k, v=v, pairs=pairs)

    def _blocks(self, found: Once, size: int) -> int:
        """The values of blocks that both the rotary dimensions and all others fill; 0 where those are too few."""
        common = math.gcd(2 * turning_pairs(found, self.turning), size)
        block = min(MOST_SHARED, common & -common)  # the largest power of two that divides it
        return block if block >= LEAST_SHARED else 0

    def _types(self, slot: int, names: Sequence[str]) -> Types:
        for who, types in self.layers.items():
            if slot in (_range(who) or ()):
                return types
        named = (self.layers[name] for name in names if name in self.layers)
        return next(named, Types(NEAR, NEAR))

    def _check(self, kinds: Mapping[str, Sequence[int]], slots: Mapping[int, _Slot]) -> None:
        for who in self.layers:
            layers = _range(who)
            if layers is not None and not any(slot in layers for slot in slots):
                owners = ", ".join(map(str, slots))
                raise BrioletteError(f"--kv: no layer of {who} has a cache of its own; these have: {owners}")
            if layers is None and who not in (*kinds, *STRUCTURAL):
                known = ", ".join((*kinds, *STRUCTURAL))
                raise BrioletteError(f"--kv: there are no layers `{who}`; there are {known}, and numbers from 0")

    def _fits(self, keep: Keep, plane: str, size: int, kind: str) -> None:
        codec = keep.codec(plane)
        if codec is None:
            return
        try:
            codec.width(size)
            if keep.rotate:
                check_rotation(size, codec.block if keep.pairs else None)
            if size % 4:
                raise BrioletteError("codes lie by fours")
        except BrioletteError as problem:
            raise BrioletteError(
                f"--kv: {codec.name} cannot keep {plane.upper()} of {kind} layers, whose heads have {size} values "
                f"({problem}); these layers can have {', '.join(CACHE_DTYPES)}"
            ) from None


@dataclass
class _Slot:
    """What is known of a cache slot: sizes of heads by plane; whether all that read it see but a window."""

    sizes: dict[str, int] = field(default_factory=dict)
    sliding: bool = True
    read: bool = False


def _slots(module: Module) -> dict[int, _Slot]:
    found: dict[int, _Slot] = {}
    for item in topological(module.roots):
        if item.op == "cache_write":
            size = item.shape[2]
            assert isinstance(size, int)
            found.setdefault(item["slot"], _Slot()).sizes[item["plane"]] = size
        elif item.op == "attend" and item.args[1].op == "cache_write":
            slot = found[item.args[1]["slot"]]
            slot.sliding, slot.read = slot.sliding and item.get("window") is not None, True
    for slot in found.values():
        slot.sliding = slot.sliding and slot.read
    return dict(sorted(found.items()))


def _names(slot: int, kinds: Mapping[str, Sequence[int]], sliding: bool, shared: bool) -> list[str]:
    """What a layer goes by, the most particular first."""
    own = [name for name, layers in kinds.items() if slot in layers]
    return [*own, *(["once"] if shared and not sliding else []), "sliding" if sliding else "full", "all"]


def _range(who: str) -> range | None:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", who)
    return range(int(found[1]), int(found[2] or found[1]) + 1) if found else None


@cache
def policy_named(text: str) -> Policy:
    """The policy that a text says. Raises BrioletteError for what is no policy, and says what is possible."""
    if text in CACHE_DTYPES:
        return Policy(text, {"all": Types(text, text)}, 0, 0)
    first, *rest = (part.strip() for part in text.split(";"))
    preset = PRESETS.get(first)
    if preset is None and "=" not in text:
        known = ", ".join((*CACHE_DTYPES, *PRESETS))
        raise BrioletteError(
            f"there is no KV cache type `{text}`; there are {known}, and policies such as `{PRESETS['balanced']}`"
        )
    own = _entries([first, *rest] if preset is None else rest)
    given = own if preset is None else _entries(preset.split(";")) | own
    preset_once = preset is not None and "once" not in own
    counts = {name: _count(name, given.pop(name)) for name in COUNTS if name in given}
    switches = {name: _switch(name, given.pop(name)) for name in SWITCHES if name in given}
    layers = {name: _types(value, switches.get("scale") == "eden") for name, value in given.items()}
    return Policy(text, layers, **counts, rotate=switches.get("rotate") != "off", preset=preset_once)


def _entries(parts: Sequence[str]) -> dict[str, str]:
    """What is left and right of the equals signs."""
    given: dict[str, str] = {}
    for entry in filter(None, parts):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not name or not value:
            raise BrioletteError(f"--kv: `{entry}` is no entry: write LAYERS=TYPE, LAYERS=k:TYPE,v:TYPE or sink=N")
        if name in given:
            raise BrioletteError(f"--kv: {name} is given twice")
        given[name] = value
    return given


def _count(name: str, value: str) -> int:
    if not value.isdecimal():
        raise BrioletteError(f"--kv: {name} is a number, not `{value}`")
    return int(value)


def _switch(name: str, value: str) -> str:
    if value not in SWITCHES[name]:
        raise BrioletteError(f"--kv: {name} is {' or '.join(SWITCHES[name])}, not `{value}`")
    return value


def _types(value: str, eden: bool) -> Types:
    """`tq4`, or `k:tq6,v:tq4`, or `kv:tq6`, or `tqkv6r4`."""
    bits = re.fullmatch(r"tqkv(\d)r(\d)", value)
    if bits is not None:
        return Types(_type(f"tq{bits[2]}", eden), _type(f"tq{bits[1]}", eden), once=True)
    if ":" not in value:
        both = _type(value, eden)
        return Types(both, both)
    planes = dict(part.strip().split(":", 1) for part in value.split(",") if ":" in part)
    if set(planes) == {"kv"} and "," not in value:
        both = _type(planes["kv"], eden)
        return Types(both, both, once=True)
    if set(planes) != {"k", "v"} or value.count(",") != 1:
        raise BrioletteError(f"--kv: `{value}` should be one type, or k:TYPE,v:TYPE, or kv:TYPE for both kept once")
    return Types(_type(planes["k"], eden), _type(planes["v"], eden))


def _type(name: str, eden: bool) -> str:
    name = name.strip()
    if name in CACHE_DTYPES:
        return name
    codec = codec_named(name)  # raises where there is none
    return f"{name}_eden" if eden and codec.fit == "norm" else name
