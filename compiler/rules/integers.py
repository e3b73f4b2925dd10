"""Products in integers: activations are quantised once, weights packed for the kernels that read them.

Both are visible: `linear(x, w)` becomes `linear(quantize(x), pack(w))`. Products of one input share its `quantize`,
and a part of a weight is a part of the packed one. Where there are many tokens, experts take theirs together: `group`
tells in which order. Which stored formats have such kernels is the backend's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..dims import evaluate
from ..ir import Node
from ..ops import node, with_args
from ..opset.matrices import BLOCK, BLOCKS, TILE
from ..rewrite import Match, Rule, op, rule


@dataclass(frozen=True)
class Integers:
    """Which products are made in integers, and how.

    formats: stored formats with the columns that a weight must be a multiple of. tile: rows of activations that lie
    interleaved where many are multiplied at a time; those of one expert are gathered when it is known which they are,
    so that they are quantised one by one. bits: of an activation. Where one row
    of them is multiplied with weights that come from memory, 16 take no longer than 8.
    """

    formats: tuple[tuple[str, int], ...]
    tile: int = 1
    bits: int = 8


def products(how: Integers | None) -> list[Rule]:
    """The rules for that."""
    if how is None:
        return []

    @rule("integer-linear", op("linear", "x", "w"))
    def linear(item: Node, found: Match) -> Node | None:
        return _product(item, how, 1 if item.shape[0] == 1 else how.tile)

    @rule("integer-experts", op("expert_linear", "x", "w", "ids"))
    def experts(item: Node, found: Match) -> Node | None:
        made = _product(item, how, 1)
        if made is None or item.shape[0] == 1:
            return made
        order = node("group", found["ids"], experts=found["w"].shape[0])
        return with_args(made, (*made.args, order))

    return [linear, experts]


def _product(item: Node, how: Integers, tile: int) -> Node | None:
    x, w, *rest = item.args
    packed = _packed(w, dict(how.formats)) if x.type.dtype == "f32" else None
    if packed is None or len(x.shape) < 2:
        return None
    return with_args(item, (node("quantize", x, tile=tile, bits=how.bits, block=_block(x, how.bits)), packed, *rest))


def _block(x: Node, bits: int) -> int:
    """How many activations share a scale. With 16 bits the largest that rows are made of: fewer scales are less work,
    and a small value beside a large one keeps bits enough. With 8 it would not."""
    columns = evaluate(x.shape[-1], {})
    return max(n for n in BLOCKS if columns % n == 0) if bits == 16 else BLOCK


def _packed(w: Node, formats: Mapping[str, int]) -> Node | None:
    """A stored weight packed, or the same part of it; None for others, and where tiles would be cut."""
    if w.op == "slice" and w["axis"] == len(w.shape) - 2 and w["start"] % TILE == w["stop"] % TILE == 0:
        whole = _packed(w.args[0], formats)
        return whole and with_args(w, (whole,))
    if w.op != "weight" or w.type.dtype not in formats:
        return None
    rows, columns = (evaluate(size, {}) for size in w.shape[-2:])
    if rows % TILE or columns % formats[w.type.dtype]:
        return None
    return node("pack", w)
