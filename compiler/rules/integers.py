"""Products in integers: activations are quantised once, weights packed for the kernels that read them. Attention over a
cache of codes is told how finely it may round what it multiplies these with.

Both are visible: `linear(x, w)` becomes `linear(quantize(x), pack(w))`. Products of one input share its `quantize`,
and a part of a weight is a part of the packed one. Where there are many tokens, experts take theirs together: `group`
tells in which order. Which stored formats have such kernels is the backend's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..codecs import Codec, codec_named, is_codec
from ..dims import evaluate
from ..ir import Node
from ..ops import attributes, node, with_args
from ..rewrite import Match, Rule, op, rule
from ..tiles import BLOCKS, SHARING, TILE


@dataclass(frozen=True)
class Integers:
    """Which products are made in integers, and how.

    formats: stored formats with the columns that a weight must be a multiple of. tile: rows of activations that lie
    interleaved where many are multiplied at a time; those of one expert are gathered when it is known which they are,
    so that they are quantised one by one. bits: of an activation. Where one row
    of them is multiplied with weights that come from memory, 16 take no longer than 8. experts: whether their products
    are among them. stored: whether kernels read weights as they are stored; these are not packed then. Attention's
    products with planes of codes always are.
    """

    formats: tuple[tuple[str, int], ...]
    tile: int = 1
    bits: int = 8
    experts: bool = True
    stored: bool = False


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
        return made and _grouped(made)

    @rule("group-experts", op("expert_linear", "x", "w", "ids"))
    def groups(item: Node, found: Match) -> Node | None:
        return _grouped(item) if item.shape[0] != 1 else None

    @rule("integer-attend", op("attend"))
    def attend(item: Node, found: Match) -> Node | None:
        return _attend(item)

    return [linear, experts if how.experts else groups, attend]


def _attend(item: Node) -> Node | None:
    """Attention told to how many bits it may round what it multiplies codes with: 8 are finer than most codes are.
    K and V kept once have no such products."""
    k, v = (_codec(arg) for arg in item.args[1:3])
    bits = {
        "query_bits": 0 if k is None else 16 if k.bits == 8 else 8,
        "weight_bits": 0 if v is None else 16 if v.signed else 8,  # a sign takes one of the bits
    }
    if item.get("shared") or all(item.get(name, 0) == value for name, value in bits.items()):
        return None
    return node("attend", *item.args, **attributes(item) | bits)


def _codec(plane: Node) -> Codec | None:
    return codec_named(plane.type.dtype) if is_codec(plane.type.dtype) else None


def _grouped(item: Node) -> Node:
    """An expert's product told to take its tokens together, where there are many."""
    if item.shape[0] == 1:
        return item
    x, w, ids = item.args
    return with_args(item, (x, w, ids, node("group", ids, experts=w.shape[0])))


def _product(item: Node, how: Integers, tile: int) -> Node | None:
    x, w, *rest = item.args
    if x.type.dtype != "f32" or len(x.shape) < 2:
        return None
    packed = _as_stored(w, dict(how.formats)) if how.stored else _packed(w, dict(how.formats))
    if packed is None:
        return None
    return with_args(item, (node("quantize", x, tile=tile, bits=how.bits, block=_block(x, how.bits)), packed, *rest))


def _block(x: Node, bits: int) -> int:
    """How many activations share a scale: fewer scales are less work, but a small value beside a large one keeps few
    bits of 8. Of 16 it keeps enough."""
    columns = evaluate(x.shape[-1], {})
    return max(n for n in BLOCKS if columns % n == 0 and n <= SHARING[bits])


def _as_stored(w: Node, formats: Mapping[str, int]) -> Node | None:
    """A stored weight, or a part of it, if products with it are made in integers."""
    columns = evaluate(w.shape[-1], {})
    return None if w.type.dtype not in formats or columns % formats[w.type.dtype] else w


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
