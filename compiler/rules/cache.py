"""The KV cache's element type is a type: choosing it rewrites the writes."""

from __future__ import annotations

from ..ir import Node
from ..ops import with_args
from ..rewrite import Match, Rule, op, rule


def cache_dtype(dtype: str) -> list[Rule]:
    """Rules that keep every K and V plane in `dtype` (f32, f16 or bf16)."""

    @rule(f"cache-{dtype}", op("cache_write"))
    def keep(item: Node, found: Match) -> Node | None:
        return None if item.type.dtype == dtype else with_args(item, item.args, dtype=dtype)

    return [keep]
