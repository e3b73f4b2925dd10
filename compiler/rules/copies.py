"""Views that no kernel can walk are copied first.

A chain of reshapes and slices moves nothing: kernels walk the strides it leaves. They walk rows that lie evenly
(products, norms, elementwise work), heads side by side (attention's queries), or elements in order (the rest). What
lies otherwise, and an output that would be a part of another value, is brought into order by a kernel of
its own: a fused node whose body returns its operand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..dims import product
from ..ir import Block, Module, Node, Type, carry, topological
from ..ops import node, with_args
from ..plan import is_view
from ..views import heads_lie_together, view_of
from .fuse import PRODUCTS, ROW_OPS, elementwise, encodes

STORED = {("linear", 1), ("expert_linear", 1), ("embed", 0), ("dequant", 0)}  # operands that are weights


def copies(module: Module, hits: Counter[str] | None = None) -> Module:
    """The unrolled module with a copy wherever a kernel could not read a view."""
    done: dict[Node, Node] = {}
    copied: dict[Node, Node] = {}
    blocks: dict[Type, Block] = {}

    def copy(item: Node) -> Node:
        given = node("param", name="p0", type=item.type)
        block = blocks.setdefault(item.type, Block(f"copy.{len(blocks) + 1}", (given,), given))
        if hits is not None:
            hits["copy-view"] += 1
        return node("fused", item, block=block, family="rows")

    def ordered(item: Node) -> Node:
        """A value with its elements in order, and no part of a larger one: itself, or a copy."""
        if not is_view(item):
            return item
        if item not in copied:
            source = ordered(item.args[0])
            copied[item] = with_args(item, (source,)) if item.op == "reshape" else part(item, source)
        return copied[item]

    def part(item: Node, source: Node) -> Node:
        """A copy of a slice of ordered values; as rows [before, axis * after], what it takes lies evenly."""
        axis = item["axis"]
        before, after = product(source.shape[:axis]), product(source.shape[axis + 1 :])
        if before == 1:
            return copy(with_args(item, (source,)))
        flat = node("reshape", source, shape=(before, product((source.shape[axis], after))))
        bounds = {end: product((item[end], after)) for end in ("start", "stop")}
        return node("reshape", copy(node("slice", flat, axis=1, **bounds)), shape=item.shape)

    for item in topological(module.roots):
        args = (done[a] if walkable(item, place) else ordered(done[a]) for place, a in enumerate(item.args))
        done[item] = with_args(item, tuple(args))
    outputs = tuple(ordered(done[out]) for out in module.outputs)
    effects = tuple(done[effect] for effect in module.effects)
    return replace(module, outputs=outputs, effects=effects, **carry(module, done))


def walkable(reader: Node, place: int) -> bool:
    """Whether a kernel for `reader` can read its operand where that lies."""
    arg = reader.args[place]
    if not is_view(arg) or is_view(reader) or arg.type.dtype != "f32" or (reader.op, place) in STORED:
        return True
    try:
        view = view_of(arg)
        by_rows = reader.op in {*PRODUCTS, *ROW_OPS, "cache_write", "quantize"} and not encodes(reader)
        if elementwise(reader) or (place == 0 and by_rows):
            view.row_stride()
            return True
    except NotImplementedError:
        return False
    return heads_lie_together(view) if place == 0 and reader.op == "attend" else view.contiguous
