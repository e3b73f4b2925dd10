"""A launch plan as data: which kernel with which grid, and where its operands lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from briolette.compiler.dims import Dim, evaluate
from briolette.compiler.ir import Node
from briolette.compiler.views import view_of

from .. import formats


@dataclass(frozen=True)
class Argument:
    """An address: `offset` bytes (which may depend on T) into entry `index` of a table.

    Tables: "arena", "scratch" and "out" (one entry each); "weights", "planes", "capacities" and "staged" (by index);
    and what a step is given: "tokens", "positions", "slots" (i32 a token) and "rows" (one i32, how many there are).
    """

    table: str
    index: int = 0
    offset: Dim = 0


@dataclass(frozen=True)
class Parts:
    """How many parts of `each` a size has, the last one perhaps not whole."""

    of: Dim
    each: int


Size = Dim | Parts


@dataclass(frozen=True)
class Launch:
    """One kernel call. grid: blocks, of which the sizes may depend on T, the tokens of a step. shared: bytes of memory
    that a block shares beside what its kernel declares."""

    kernel: str
    grid: tuple[Size, Size, Size]
    threads: int
    arguments: tuple[Argument, ...]
    shared: int = 0


class Places(Protocol):
    """Where the values of a planned program lie."""

    def pointer(self, item: Node) -> Argument:
        """Where a value, a stored weight or a part of one begins."""
        ...

    def plane(self, item: Node) -> tuple[Argument, Argument]:
        """A cache plane, and the positions it holds of each sequence (one i64)."""
        ...

    def staged(self, weight: Node, ids: Node) -> Argument | None:
        """The rows of a table that the host gathers for a step's tokens, from those of `ids` on, where the table stays
        in its memory."""
        ...


def blocks(size: Size, sizes: Mapping[str, int]) -> int:
    """A grid's size for a step."""
    return -(-evaluate(size.of, sizes) // size.each) if isinstance(size, Parts) else evaluate(size, sizes)


def known(dim: Dim | Parts) -> int:
    assert isinstance(dim, int), f"{dim} must be known when the program is compiled"
    return dim


def row_stride(weight: Node) -> int:
    """Bytes from one row of a stored matrix to the next."""
    if weight.type.dtype == "f32":
        return 4 * view_of(weight).strides[-2]
    return formats.row_bytes(weight.type.dtype, known(weight.shape[-1]))
