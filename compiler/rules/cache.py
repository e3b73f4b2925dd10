"""How the KV cache is kept is a matter of types: a policy rewrites what caches are written with and read as.

cache_write(x)         -> cache_write(x) {dtype}                    numbers of a type
                       -> cache_write(hadamard(x)) {dtype}          codes of vectors that have been turned
attend(q, k, v)        -> hadamard(attend(hadamard(q), k, v)) back  q turns with K, what attention gives with V
                       -> attend(q, k, v, near_k, near_v)           the nearest positions are read as bf16
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..ir import Module, Node, Rebuilder, carry
from ..ops import node, with_args
from ..policy import NEAR, Keep, policy_named


def kept(module: Module, policy: str, hits: Counter[str] | None = None) -> Module:
    """The unrolled module with its cache kept as a policy says. Raises BrioletteError as `Policy.keeps` does."""
    return _Keeper(policy_named(policy).keeps(module), Counter() if hits is None else hits).run(module)


class _Keeper:
    def __init__(self, keeps: Mapping[int, Keep], hits: Counter[str]):
        self.keeps, self.hits = keeps, hits
        self.written: dict[Node, tuple[Node, Node, int, str]] = {}  # by the new write: turned heads, positions, slot
        self.near: dict[Node, Node] = {}  # writes to near planes, by those to planes

    def run(self, module: Module) -> Module:
        rebuild = Rebuilder(self.visit)
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
        dtype = {"k": keep.k, "v": keep.v}[plane]
        if keep.rotates(plane):
            x = self.turned(x)
        made = with_args(item, (x, pos), dtype=dtype)
        self.hits["cache-type"] += made.type.dtype != item.type.dtype
        self.written[made] = x, pos, slot, plane
        return made

    def attend(self, item: Node, args: tuple[Node, ...]) -> Node:
        q, k, v, pos = args
        keep = self.keeps[k["slot"]]
        if keep.rotates("k"):
            q = self.turned(q)
        if keep.near:
            self.hits["cache-near"] += 1
            given = (q, k, v, pos, self.beside(k), self.beside(v))
            found = with_args(item, given, sink=keep.sink, recent=keep.recent)
        else:
            found = with_args(item, (q, k, v, pos))
        return self.turned(found, inverse=True) if keep.rotates("v") else found

    def turned(self, x: Node, inverse: bool = False) -> Node:
        self.hits["cache-rotate"] += 1
        return node("hadamard", x, inverse=inverse)

    def has_near(self, write: Node) -> bool:
        return write in self.written and self.keeps[self.written[write][2]].near

    def beside(self, write: Node) -> Node:
        """The write of the same heads to the plane of the nearest positions."""
        if write not in self.near:
            x, pos, slot, plane = self.written[write]
            attrs = {"slot": slot, "plane": f"near_{plane}", "dtype": NEAR, "sink": self.keeps[slot].sink}
            self.near[write] = node("cache_write", x, pos, **attrs)
        return self.near[write]
