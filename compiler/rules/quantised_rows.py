"""Rows that nothing reads but a `quantize` are quantised by the kernel that makes them: norm + quantise in one pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..ir import Block, Module, Node, carry, topological, users
from ..ops import node, with_args

MOST_COLUMNS = 8192  # of a row, which a kernel keeps at hand until it is quantised
ENDS = ("rotate", "cache_write")  # what a kernel over rows ends with already


def quantised_rows(module: Module, hits: Counter[str] | None = None) -> Module:
    """The fused module with such pairs in one node, of the family `rows`, whose block ends in `quantize`."""
    readers, roots = users(module.roots), frozenset(module.roots)
    done: dict[Node, Node] = {}
    blocks: dict[tuple[Block, object], Block] = {}
    for item in topological(module.roots):
        args = tuple(done[arg] for arg in item.args)
        made = with_args(item, args)
        x = item.args[0] if item.op == "quantize" else None
        if x is not None and x not in roots and len(readers[x]) == 1 and _ends(x):
            block, rows = x["block"], done[x]
            key = block, item.attrs
            if key not in blocks:
                result = node("quantize", block.result, **dict(item.attrs))
                blocks[key] = Block(f"{block.name}.quantised", block.params, result)
            made = node("fused", *rows.args, block=blocks[key], family="rows")
            if hits is not None:
                hits["quantise-rows"] += 1
        done[item] = made
    outputs = tuple(done[n] for n in module.outputs)
    effects = tuple(done[n] for n in module.effects)
    return replace(module, outputs=outputs, effects=effects, **carry(module, done))


def _ends(item: Node) -> bool:
    if item.op != "fused" or item["family"] != "rows":
        return False
    result, columns = item["block"].result, item.shape[-1]
    short = isinstance(columns, int) and columns <= MOST_COLUMNS
    return short and result.op not in ENDS and result.shape == item.shape
