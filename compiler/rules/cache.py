"""How the KV cache is kept is a matter of types: a policy rewrites what caches are written with and read as.

cache_write(x)         -> cache_write(x) {dtype}                    numbers of a type
                       -> cache_write(hadamard(x)) {dtype}          codes of vectors that have been turned
attend(q, k, v)        -> hadamard(attend(hadamard(q), k, v)) back  q turns with K, what attention gives with V
                       -> attend(q, k, v, near_k, near_v)           the nearest positions are read as bf16
                           -> attend(rotary_first(q, w), k, v) {shared} K but for its rotary part is w * V
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..ir import Module, Node, Rebuilder, carry
from ..ops import node, with_args
from ..policy import NEAR, Keep, policy_named
from ..shared_kv import Once, once


def kept(module: Module, policy: str, hits: Counter[str] | None = None) -> Module:
    """The unrolled module with its cache kept as a policy says. Raises BrioletteError as `Policy.keeps` does."""
    chosen = policy_named(policy)
    shared = once(module) if chosen.once else {}
    return _Keeper(chosen.keeps(module), shared, Counter() if hits is None else hits).run(module)


class _Keeper:
    def __init__(self, keeps: Mapping[int, Keep], shared: Mapping[int, Once], hits: Counter[str]):
        self.keeps, self.shared, self.hits = keeps, shared, hits
        self.made: dict[Node, Node] = {}  # what has been rebuilt: factors of keys, too
        self.written: dict[Node, tuple[Node, Node, int, str]] = {}  # by the new write: turned heads, positions, slot
        self.near: dict[Node, Node] = {}  # writes to near planes, by those to planes

    def run(self, module: Module) -> Module:
        rebuild = Rebuilder(self.visit)
        self.made = rebuild.done
        rebuild(found.factors for found in self.shared.values())
        outputs, effects = rebuild(module.outputs), rebuild(module.effects)
        beside = tuple(self.beside(effect) for effect in effects if self.has_near(effect))
        return replace(module, outputs=outputs, effects=(*effects, *beside), **carry(module, rebuild.done))

    def visit(self, item: Node, args: tuple[Node, ...]) -> Node:
        if item.op == "cache_write":
            return self.write(item, args)
        if item.op == "attend" and args[1] in self.written:
            return self.attend(item, args)
        return with_args(item, args)

    def write(self, item: Node, args: tuple[Node, ...]) -> Node:
        slot, plane = item["slot"], item["plane"]
        keep, (x, pos) = self.keeps[slot], args
        if keep.pairs:
            x = self.by_rotary(x, slot)
            x = node("slice", x, axis=2, start=0, stop=2 * keep.pairs) if plane == "k" else x
        x = self.turned(x, keep, plane)
        made = node("cache_write", x, pos, slot=slot, plane=plane, dtype={"k": keep.k, "v": keep.v}[plane])
        self.hits["cache-type"] += made.type.dtype != item.type.dtype
        self.written[made] = x, pos, slot, plane
        return made

    def attend(self, item: Node, args: tuple[Node, ...]) -> Node:
        q, k, v, pos = args
        slot, attrs = k["slot"], dict(item.attrs)
        keep = self.keeps[slot]
        if keep.pairs:
            self.hits["cache-once"] += 1
            q = self.by_rotary(q, slot, self.made[self.shared[slot].factors])
            attrs["shared"] = 2 * keep.pairs
        near: tuple[Node, ...] = ()
        if keep.near:
            self.hits["cache-near"] += 1
            near, attrs = (self.beside(k), self.beside(v)), attrs | {"sink": keep.sink, "recent": keep.recent}
        found = node("attend", self.turned(q, keep, "k"), k, v, pos, *near, **attrs)
        found = self.turned(found, keep, "v", inverse=True)
        return self.by_rotary(found, slot, inverse=True) if keep.pairs else found

    def by_rotary(self, x: Node, slot: int, *factors: Node, inverse: bool = False) -> Node:
        order = {"pairs": self.keeps[slot].pairs, "half": self.shared[slot].half, "inverse": inverse}
        return node("rotary_first", x, *factors, **order)

    def turned(self, x: Node, keep: Keep, plane: str, inverse: bool = False) -> Node:
        """Heads as they are coded in a plane, or back; where no plane is coded, themselves."""
        if not keep.rotates(plane):
            return x
        self.hits["cache-rotate"] += 1
        codec = keep.codec(plane)
        assert codec is not None
        return node("hadamard", x, block=codec.block if keep.pairs else None, inverse=inverse)

    def has_near(self, write: Node) -> bool:
        return write in self.written and self.keeps[self.written[write][2]].near

    def beside(self, write: Node) -> Node:
        """The write of the same heads to the plane of the nearest positions."""
        if write not in self.near:
            x, pos, slot, plane = self.written[write]
            attrs = {"slot": slot, "plane": f"near_{plane}", "dtype": NEAR, "sink": self.keeps[slot].sink}
            self.near[write] = node("cache_write", x, pos, **attrs)
        return self.near[write]
