"""The inverse of fusion, for those who look at programs: kernels opened, the ops they run in their place."""

from __future__ import annotations

from dataclasses import replace

from .ir import Module, Node, Rebuilder, carry, topological
from .ops import with_args


def unfused(module: Module, *before: Module) -> Module:
    """The unrolled module without `fused` nodes. A kernel that only copies disappears.

    Nodes are interned, so the ops of a kernel are the very ones that were fused: what earlier stages, given as
    `before`, knew of them (spec lines, names, places) is known again.
    """
    rebuild = Rebuilder(_opened)
    outputs, effects = rebuild(module.outputs), rebuild(module.effects)
    known = [module, *before]
    carried = carry(module, rebuild.done)
    origins = {**carried["origins"], **{n: lines for m in known for n, lines in m.origins.items()}}
    names = {**carried["names"], **{n: name for m in known for n, name in m.names.items()}}
    places = {**carried["places"], **{n: place for m in known for n, place in m.places.items()}}
    behind = {**carried["behind"], **{n: lines for m in known for n, lines in m.behind.items()}}
    return replace(module, outputs=outputs, effects=effects, origins=origins, names=names, places=places, behind=behind)


def _opened(item: Node, args: tuple[Node, ...]) -> Node:
    if item.op != "fused":
        return with_args(item, args)
    block = item["block"]
    inside = Rebuilder(with_args)
    inside.done = dict(zip(block.params, args, strict=True))
    return inside((block.result,))[0]


def kernels(module: Module) -> dict[str, int]:
    """How many kernels of each family an unrolled module has; ops with a kernel of their own by their name."""
    found: dict[str, int] = {}
    for item in topological(module.roots):
        if item.op in ("fused", "attend"):
            family = item["family"] if item.op == "fused" else item.op
            found[family] = found.get(family, 0) + 1
    return found
