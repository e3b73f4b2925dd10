"""What the cache takes for any choice of types, from the backend's own plan; how a choice is spelled as a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from briolette.backends.base import Options, PlaneMemory, Source
from briolette.compiler.codecs import codec_named, is_codec
from briolette.compiler.codecs.lloyd_max import distortion
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import topological
from briolette.compiler.policy import policy_named
from briolette.engine.backends import backend_named

CODECS = ("tq2", "tq3", "tq4", "tq5", "tq6", "tq8")
PLAIN = "bf16"  # what a side is kept in where no codec is worth it, or possible
PLAIN_ERROR = 2.4e-6  # of bf16: a step of 2^-7 at most, squared, by 12, beside the mean square of a mantissa
NEAR = "near"  # planes beside codes, of the first and the latest positions

Side = tuple[int, str]  # a layer that keeps a cache, and "k" or "v"
Choice = Mapping[Side, str]  # the type of every side


@dataclass(frozen=True)
class Costs:
    """Bytes of every side in every type that it can have. near: of each layer, what it keeps in bf16 beside codes.
    beside: of each side, what it takes in bf16 where the other one of its layer is coded: codes lie in whole tiles.

    whole: of all sides in f16. heads: the size of each side's heads.
    """

    sides: Mapping[Side, Mapping[str, int]]
    near: Mapping[int, int]
    beside: Mapping[Side, int]
    whole: int
    heads: Mapping[Side, int]
    suffix: str  # of the policy: which positions are kept in bf16

    def bytes(self, choice: Choice) -> int:
        """Of the whole cache."""
        coded = {slot for (slot, _), name in choice.items() if is_codec(name)}
        return sum(self.near[slot] for slot in coded) + sum(
            self.beside[side] if name == PLAIN and side[0] in coded else self.sides[side][name]
            for side, name in choice.items()
        )

    def error(self, side: Side, name: str) -> float:
        """The squared error of a type, relative to the squared length: `docs/kv-cache.md` calls it D."""
        if not is_codec(name):
            return PLAIN_ERROR
        return distortion(codec_named(name).bits, self.heads[side])

    def spelled(self, choice: Choice, otherwise: str = PLAIN) -> str:
        """The choice as a policy; of layers that are not in it, `otherwise`."""
        layers = {slot: (choice[slot, "k"], choice[slot, "v"]) for slot, _ in choice}
        slots = sorted({slot for slot, _ in self.sides})
        runs: list[tuple[int, int, tuple[str, str]]] = []
        for slot in slots:
            types = layers.get(slot, (otherwise, otherwise))
            if runs and runs[-1][2] == types:
                runs[-1] = (runs[-1][0], slot, types)
            else:
                runs.append((slot, slot, types))
        rest = [run for run in runs if run[2] != (otherwise, otherwise)]
        entries = [f"all={otherwise}"] if len(rest) < len(runs) else []
        if len(runs) == 1:
            return f"all={_types(*runs[0][2])}{self.suffix}"
        entries += [f"{a if a == b else f'{a}-{b}'}={_types(*types)}" for a, b, types in rest]
        return ";".join(entries) + self.suffix


def _types(k: str, v: str) -> str:
    return k if k == v else f"k:{k},v:{v}"


def costs_of(source: Source, options: Options, backend: str, sink: int, recent: int) -> Costs:
    """Of a model, at the context of the options. Raises BrioletteError where no layer can keep codes."""
    suffix, memory = f";sink={sink};recent={recent}", backend_named(backend).memory

    def planes(policy: str) -> dict[Side, PlaneMemory]:
        return {(plane.slot, plane.plane): plane for plane in memory(source, policy)(options).planes}

    plain, whole = planes(PLAIN), planes("f16")
    slots = sorted({slot for slot, _ in plain})
    able = [slot for slot in slots if possible(source, f"{slot}={CODECS[0]}{suffix}")]
    if not able:
        raise BrioletteError(
            f"no layer of this model can keep its cache in {', '.join(CODECS)}: a Walsh-Hadamard rotation needs heads "
            "that are a power of two"
        )
    sides: dict[Side, dict[str, int]] = {side: {PLAIN: plane.bytes} for side, plane in plain.items()}
    near, beside = dict.fromkeys(slots, 0), {}
    for name in CODECS:
        every = planes(";".join(f"{slot}={name}" for slot in able) + suffix)
        for (slot, plane), found in every.items():
            if plane.startswith(NEAR):
                near[slot] += found.bytes if name == CODECS[0] else 0
            elif slot in able:
                sides[slot, plane][name] = found.bytes
    for plane, types in (("k", f"k:{PLAIN},v:{CODECS[0]}"), ("v", f"k:{CODECS[0]},v:{PLAIN}")):
        every = planes(";".join(f"{slot}={types}" for slot in able) + suffix)
        beside |= {(slot, plane): every[slot, plane].bytes for slot in able}
    return Costs(sides, near, beside, sum(plane.bytes for plane in whole.values()), _heads(source), suffix)


def possible(source: Source, policy: str) -> bool:
    """Whether a model's layers can be kept so."""
    try:
        policy_named(policy).keeps(source.module)
    except BrioletteError:
        return False
    return True


def _heads(source: Source) -> dict[Side, int]:
    """The size of each side's heads."""
    found: dict[Side, int] = {}
    for item in topological(source.module.roots):
        if item.op == "cache_write":
            size = item.shape[2]
            assert isinstance(size, int)
            found[item["slot"], item["plane"]] = size
    return found
