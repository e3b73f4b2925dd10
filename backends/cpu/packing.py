"""Weights as kernels that multiply integers read them: 16 rows interleaved by words of four bytes.

A unit is as many blocks of a row as make whole words; its fields are cut into words so that those of four and more
bytes begin at one. A tile is 16 rows: word j of a unit of all 16 rows lies side by side, one vector. So every field of
a format can be read in lanes, whatever the format, and no sum has to go across them. Words stand in the order in which
a single row of activations wants them, because memory is fastest when it is read from front to back. Packing moves
bytes and makes none: a packed weight takes as many as it takes in the file. Only where a row's blocks do not come out
even, such as 11 of q6_k, units are smaller, and what their last word lacks is left empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from briolette.compiler.tiles import BLOCK, TILE

from .. import formats
from ..formats import FORMATS, Field, Format

WORD = 4  # bytes
LINE = WORD * TILE  # bytes of one word of all rows: a vector
AHEAD = 8192  # bytes that weights are asked for ahead of their use, into L2, where the processor wants to be asked


@dataclass(frozen=True)
class Piece:
    """A field of one of a unit's blocks: where it lies in the file's unit, and where in the unit cut into words."""

    field: Field
    block: int
    source: int
    at: int


@dataclass(frozen=True)
class Packing:
    """How a format is packed, with so many blocks in a unit."""

    format: Format
    blocks: int

    @property
    def stored_bytes(self) -> int:
        """Of a unit of one row in the file."""
        return self.blocks * self.format.bytes

    @property
    def bytes(self) -> int:
        """Of a unit of one row: whole words."""
        return -(-self.stored_bytes // WORD) * WORD

    def row_bytes(self, columns: int) -> int:
        return columns // self.elements * self.bytes

    @property
    def elements(self) -> int:
        """Of a unit."""
        return self.blocks * self.format.elements

    @cached_property
    def pieces(self) -> dict[tuple[str, int], Piece]:
        found: dict[tuple[str, int], Piece] = {}
        at = 0
        for whole in (True, False):
            for block in range(self.blocks):
                for field in self.format.fields:
                    if (field.length % WORD == 0) == whole:
                        source = block * self.format.bytes + field.offset
                        found[field.name, block] = Piece(field, block, source, at)
                        at += field.length
        return found

    def words(self, block: int, element: int) -> tuple[int, ...]:
        """The words that four elements from `element` on are made of, the high bits' first."""
        packed = self.format.quants
        assert packed is not None
        found = []
        for name in filter(None, (packed.high, packed.low)):
            field = self.format[name]
            byte = 0 if name == self.spread else field.place(element)[0] - field.offset
            found.append((self.pieces[name, block].at + byte) // WORD)
        return tuple(found)

    @cached_property
    def spans(self) -> tuple[tuple[int, ...], ...]:
        """A block's elements by fours, in stretches that have no word in common. Within one, those that share words
        follow one another."""
        fours = range(0, self.format.elements, 4)
        found: list[tuple[int, ...]] = []
        start = 0
        while start < self.format.elements:
            stop, grown = start, start + BLOCK
            while stop < grown:
                stop = grown
                used = {word for e in range(start, stop, 4) for word in self.words(0, e)}
                last = max(e for e in fours if used.intersection(self.words(0, e)))
                grown = (last // BLOCK + 1) * BLOCK
            found.append(tuple(sorted(range(start, stop, 4), key=lambda e: (self.words(0, e), e))))
            start = stop
        return tuple(found)

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """The words that hold something of several blocks."""
        return tuple(sorted({p.at // WORD for p in self.pieces.values() if p.field.length % WORD}))

    @cached_property
    def order(self) -> dict[int, int]:
        """Each word's place in a packed unit: what blocks share; then, block by block, scales, and the elements as
        `spans` has them."""
        found = dict.fromkeys(self.shared)
        for block in range(self.blocks):
            quants = dict.fromkeys(w for span in self.spans for e in span for w in self.words(block, e))
            whole = [p for (_, of), p in self.pieces.items() if of == block and p.field.length % WORD == 0]
            own = [word for p in whole for word in range(p.at // WORD, (p.at + p.field.length) // WORD)]
            found |= dict.fromkeys([word for word in own if word not in quants]) | quants
        return {word: place for place, word in enumerate(found)}

    @property
    def stride(self) -> int:
        """Bytes from what is a block's own in a packed tile to the next block's of the same unit."""
        return LINE * (self.bytes // WORD - len(self.shared)) // self.blocks

    @property
    def turns(self) -> int:
        """How often a loop over a unit turns: once a block where blocks are large, which keeps code small. Also, AMD's
        cores fetch ahead what an instruction reads in steps of less than a page."""
        return self.blocks if self.format.elements > 4 * BLOCK else 1

    @property
    def spread(self) -> str | None:
        """A field of single bits in the elements' order, which packing puts in an order of its own: bit e goes to bit
        e / 4 of byte e % 4, so that four elements' bits are one shift away."""
        packed = self.format.quants
        high = self.format[packed.high] if packed is not None and packed.high else None
        return high.name if high is not None and high.run == 1 else None


@cache
def packing(format: str, columns: int) -> Packing:
    """How weights of a format, one of `PACKED`, with rows of so many columns are packed."""
    ways = [Packing(FORMATS[format], blocks) for blocks in (1, 2, 4)]
    return min((how for how in ways if columns % how.elements == 0), key=lambda how: how.bytes / how.blocks)


def row_bytes(format: str, columns: int, packed: bool) -> int:
    """Of a row of a stored weight."""
    return packing(format, columns).row_bytes(columns) if packed else formats.row_bytes(format, columns)


# What can be packed, and the columns that a weight must be a multiple of.
PACKED = {name: f.elements for name, f in FORMATS.items() if f.quants is not None and f.elements % BLOCK == 0}
