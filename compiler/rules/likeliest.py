"""The largest logits, found where they are made: who chooses among these needs no others written.

Applies where the logits come straight from a product, whose kernel then keeps the largest beside them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..dims import evaluate
from ..ir import Module
from ..ops import node


def with_likeliest(module: Module, count: int, hits: Counter[str] | None = None) -> Module:
    """The fused module with two more outputs, the `count` likeliest tokens after its last and their logits; as it is
    where there are no such logits, and for none."""
    logits = module.outputs[0]
    if not count or logits.op != "fused" or logits["family"] != "linear" or logits.shape[0] != 1:
        return module
    ids = node("top", logits, k=min(count, evaluate(logits.shape[-1], {})))
    if hits is not None:
        hits["likeliest"] += 1
    return replace(module, outputs=(*module.outputs, ids, node("take", logits, ids)))
