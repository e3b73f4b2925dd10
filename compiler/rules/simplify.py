"""Folding and tidying: what any backend profits from."""

from __future__ import annotations

import numpy as np

from ..interp import Interpreter
from ..ir import Node
from ..ops import OPS, node
from ..rewrite import Match, op, rule

COMMUTATIVE = ("add", "mul")


@rule("fold-constants")
def fold_constants(item: Node, found: Match) -> Node | None:
    """An elementwise op on numbers is a number."""
    if not item.args or "elementwise" not in OPS[item.op].traits or any(a.op != "const" for a in item.args):
        return None
    value = Interpreter(_no_weights).evaluate([item], {})[0]
    return node("const", value=float(np.float32(value)))


def _no_weights(name: str) -> np.ndarray:
    raise LookupError(name)


@rule("constant-right")
def constant_right(item: Node, found: Match) -> Node | None:
    """`2 * x` is `x * 2`, so that other rules look in one place."""
    if item.op in COMMUTATIVE and item.args[0].op == "const" and item.args[1].op != "const":
        return node(item.op, item.args[1], item.args[0])
    return None


@rule("multiply-by-one", op("mul", "x", op("const", bind="c")))
def multiply_by_one(item: Node, found: Match) -> Node | None:
    return found["x"] if found["c"]["value"] == 1.0 and found["x"].type == item.type else None


@rule("add-zero", op("add", "x", op("const", bind="c")))
def add_zero(item: Node, found: Match) -> Node | None:
    return found["x"] if found["c"]["value"] == 0.0 and found["x"].type == item.type else None


@rule("reshape-of-reshape", op("reshape", op("reshape", "x")))
def reshape_of_reshape(item: Node, found: Match) -> Node | None:
    return node("reshape", found["x"], shape=item.shape)


@rule("reshape-to-same", op("reshape", "x"))
def reshape_to_same(item: Node, found: Match) -> Node | None:
    return found["x"] if found["x"].shape == item.shape else None


@rule("slice-of-everything", op("slice", "x"))
def slice_of_everything(item: Node, found: Match) -> Node | None:
    return found["x"] if found["x"].shape == item.shape else None


@rule("slice-of-slice", op("slice", op("slice", "x", bind="inner")))
def slice_of_slice(item: Node, found: Match) -> Node | None:
    inner = found["inner"]
    if inner["axis"] != item["axis"]:
        return None
    start = inner["start"] + item["start"]
    return node("slice", found["x"], axis=item["axis"], start=start, stop=start + (item["stop"] - item["start"]))


@rule("share-rope-angles", op("rope"))
def share_rope_angles(item: Node, found: Match) -> Node | None:
    """Every head of every layer of a kind turns by the same angles: compute them once a step."""
    body = OPS["rope"].body
    assert body is not None
    attrs = {**OPS["rope"].attrs, **dict(item.attrs)}
    return body(*item.args, **attrs)


SIMPLIFY = [
    fold_constants,
    constant_right,
    multiply_by_one,
    add_zero,
    reshape_of_reshape,
    reshape_to_same,
    slice_of_everything,
    slice_of_slice,
]
ANGLES = [share_rope_angles]
