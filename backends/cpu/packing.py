"""Weights as kernels that multiply integers read them: 16 rows interleaved by words of four bytes.

A unit is as many blocks of a row as make whole words; its fields are cut into words so that those of four and more
bytes begin at one. A tile is 16 rows: word j of a unit of all 16 rows lies side by side, one vector. So every field of
a format can be read in lanes, whatever the format, and no sum has to go across them. Words stand in the order in which
a single row of activations wants them, because memory is fastest when it is read from front to back. Packing moves
bytes and makes none: a packed weight takes as many as it takes in the file. Only where a row's blocks do not come out
even, such as 11 of q6_k, units are smaller, and what their last word lacks is left empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

from llvmlite import ir

from briolette.compiler.opset.matrices import BLOCK, TILE

from .. import formats
from ..formats import FORMATS, Field, Format
from .build import F32, I8, I16, I32, I64, PTR, VOID, Build, Target, Value
from .quads import BYTES, WORD, emit_lookup

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


def packing(format: str, columns: int) -> Packing:
    """How weights of a format, one of `PACKED`, with rows of so many columns are packed."""
    ways = [Packing(FORMATS[format], blocks) for blocks in (1, 2, 4)]
    return min((how for how in ways if columns % how.elements == 0), key=lambda how: how.bytes / how.blocks)


def row_bytes(format: str, columns: int, packed: bool) -> int:
    """Of a row of a stored weight."""
    return packing(format, columns).row_bytes(columns) if packed else formats.row_bytes(format, columns)


# What can be packed, and the columns that a weight must be a multiple of.
PACKED = {name: f.elements for name, f in FORMATS.items() if f.quants is not None and f.elements % BLOCK == 0}


def emit_pack(module: ir.Module, target: Target, name: str, how: Packing) -> ir.Function:
    """`void f(ptr file, ptr packed, i64 first, i64 last, i64 units)`: tiles first .. last of rows of `units` units."""
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, I64, I64, I64]), name)
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    source, packed, first, last, units = function.args
    row_bytes = b.mul(units, how.stored_bytes)

    def unit(index: Value, _: list[Value]) -> None:
        tile, u = b.ir.udiv(index, units), b.ir.urem(index, units)
        start = b.at(b.at(source, b.mul(b.mul(tile, TILE), row_bytes)), b.mul(u, how.stored_bytes))
        rows = [b.at(start, b.mul(row_bytes, r)) for r in range(TILE)]
        out = b.at(packed, b.mul(index, how.bytes * TILE))
        words = list(_words(how).items())
        for group in range(0, len(words), TILE):
            some = words[group : group + TILE]
            lines = _turned(b, [_row(b, row, [parts for _, parts in some]) for row in rows])
            for (at, parts), line in zip(some, lines, strict=False):
                spread = any(piece.field.name == how.spread for piece, *_ in parts)
                b.store(_spread(b, line) if spread else line, out, LINE * how.order[at // WORD], align=LINE)

    b.loop(b.mul(first, units), b.mul(last, units), 1, [], unit)
    b.ir.ret_void()
    return function


# A part of a word: the piece it comes from, its offset in the file's unit, its bytes, its place in the word.
Part = tuple[Piece, int, int, int]


def _words(how: Packing) -> dict[int, list[Part]]:
    """Each word of a packed unit with the stretches of bytes that it is made of."""
    found: dict[int, list[Part]] = {}
    for piece in how.pieces.values():
        done = 0
        while done < piece.field.length:
            at = piece.at + done
            size = min(WORD - at % WORD, piece.field.length - done)
            found.setdefault(at // WORD * WORD, []).append((piece, piece.source + done, size, at % WORD))
            done += size
    return dict(sorted(found.items()))


def _row(b: Build, row: Value, words: Sequence[Sequence[Part]]) -> Value:
    """Up to 16 words of one row as a vector; stretches that lie together in the file are loaded together."""
    runs: list[list[Sequence[Part]]] = []
    for parts in words:
        ((_, offset, size, _), *more) = parts
        before = runs[-1][-1][0] if runs else None
        follows = before is not None and size == before[2] == WORD and offset == before[1] + WORD and not more
        if follows:
            runs[-1].append(parts)
        else:
            runs.append([parts])
    vector, at = b.const(b.vec(I32, TILE), 0), 0
    for run in runs:
        count = len(run)
        if count > 1:
            loaded = b.load(row, b.vec(I32, count), run[0][0][1])
            wide = b.shuffle(loaded, [min(i, count) for i in range(TILE)], b.const(loaded.type, 0))
            mask = [i if not at <= i < at + count else TILE + i - at for i in range(TILE)]
            vector = b.shuffle(vector, mask, wide) if count < TILE else loaded
        else:
            vector = b.ir.insert_element(vector, _word(b, row, run[0]), b.i32(at))
        at += count
    return vector


def _word(b: Build, row: Value, parts: Sequence[Part]) -> Value:
    """A word of one row, put together from where its bytes lie in the file."""
    pieces = []
    for _, offset, size, place in parts:
        loaded = b.load(row, {1: I8, 2: I16, 4: I32}[size], offset)
        pieces.append(b.shl(loaded if size == WORD else b.ir.zext(loaded, I32), 8 * place))
    return reduce(b.bit_or, pieces)


def _turned(b: Build, rows: list[Value]) -> list[Value]:
    """16 vectors of 16 turned about: lane i of result j is lane j of row i."""
    span = TILE // 2
    while span:
        first = [i if i // span % 2 == 0 else TILE + i - span for i in range(TILE)]
        second = [i + span if i // span % 2 == 0 else TILE + i for i in range(TILE)]
        turned = list(rows)
        for i in range(TILE):
            if i // span % 2 == 0:
                turned[i] = b.shuffle(rows[i], first, rows[i + span])
                turned[i + span] = b.shuffle(rows[i], second, rows[i + span])
        rows, span = turned, span // 2
    return rows


def _spread(b: Build, word: Value) -> Value:
    """Bits in the elements' order to the order of `Packing.spread`."""
    parts = []
    for k in range(8):
        four = b.bit_and(b.shr(word, 4 * k), 0xF)
        apart = b.bit_and(b.mul(four, 0x00204081), BYTES)  # bit i of four to byte i
        parts.append(b.shl(apart, k))
    return reduce(b.bit_or, parts)


class Unit:
    """A unit of a tile at `ptr`: its weights as bytes and its scales as f32, in lanes of 16 rows.

    With `turn`, an i64, it is that one of its blocks, which then is block 0.
    """

    def __init__(self, b: Build, how: Packing, ptr: Value, turn: Value | None = None):
        self.b, self.how, self.format, self.ptr, self.turn = b, how, how.format, ptr, turn
        self.own = ptr if turn is None else b.at(ptr, b.mul(turn, how.stride))
        self.made: dict[object, Value] = {}

    # --- weights ---------------------------------------------------------------------------------------

    @property
    def bias(self) -> int:
        """What has to be taken off the bytes that `weights` gives."""
        packed = self.format.quants
        assert packed is not None
        return 128 if packed.table or self.format[packed.low].bits == 8 else packed.bias

    def weights(self, block: int, element: int) -> Value:
        """Four consecutive weights of each row as unsigned bytes in an i32."""
        b, packed = self.b, self.format.quants
        assert packed is not None
        low = self.format[packed.low]
        if low.bits == 8:
            byte = element
            word = self.word(packed.low, block, byte)
            return b.ir.xor(word, b.const(word.type, 0x80 * BYTES)) if low.type == "i8" else word
        byte, shift = low.place(element)
        mask = ((1 << low.bits) - 1) * BYTES
        q = b.bit_and(b.shr(self.word(packed.low, block, byte - low.offset), shift), mask)
        if packed.high is not None:
            q = b.bit_or(q, self.high(packed.high, block, element, low.bits))
        return emit_lookup(b, [v + 128 for v in packed.table], q) if packed.table else q

    def high(self, name: str, block: int, element: int, up: int) -> Value:
        """The high bits of four weights, where they belong."""
        b, field = self.b, self.format[name]
        byte, shift = (0, element // 4) if name == self.how.spread else field.place(element)
        word = self.word(name, block, 0 if name == self.how.spread else byte - field.offset)
        moved = b.shl(word, up - shift) if up >= shift else b.shr(word, shift - up)
        return b.bit_and(moved, (((1 << field.bits) - 1) << up) * BYTES)

    # --- scales ----------------------------------------------------------------------------------------

    def scale(self, block: int, group: int) -> Value:
        """f32: what a group's weights are multiplied with."""
        return self.once(("scale", block, group), lambda: self._scale("d", block, group, 0))

    def offset(self, block: int, group: int) -> Value | None:
        """f32: what is added to them, times their scale's activations; None where there is nothing."""
        name = self.format.offsets
        if name is None:
            return None
        groups = self.format.groups
        made = self.once(("offset", block, group), lambda: self._scale(name, block, group, groups))
        return self.b.neg(made) if self.format.subs is not None else made

    def _scale(self, name: str, block: int, group: int, first: int) -> Value:
        number = self.once((name, block), lambda: self.number(name, block))
        if self.format.subs is None:
            return number
        return self.b.mul(number, self.b.to_f32(self.sub(block, first + group)))

    def number(self, name: str, block: int) -> Value:
        """A scalar field as f32."""
        b, field = self.b, self.format[name]
        value = self.bytes_of(name, block, 0)
        if field.type == "f16":
            return b.f16_to_f32(b.ir.trunc(value, b.vec(I16, TILE)))
        e = b.bit_and(value, 0xFF)  # e8m0, halved: see formats.numbers
        tiny = b.ir.shl(b.const(e.type, 0x00200000), e)
        small = b.ir.icmp_unsigned("<", e, b.const(e.type, 2))
        return b.bits(b.ir.select(small, tiny, b.shl(b.sub(e, 1), 23)), b.vec(F32, TILE))

    def sub(self, block: int, index: int) -> Value:
        """A group's own small scale, or offset, as an i32."""
        b, subs = self.b, self.format.subs
        assert subs is not None
        low = self.format[subs.low]
        if low.bits == 6:
            return self.six(block, index)
        value = self.integer(subs.low, block, index)
        if low.type == "i8":
            value = b.ir.ashr(b.shl(value, 24), b.const(value.type, 24))
        if subs.high is not None:
            value = b.bit_or(value, b.shl(self.integer(subs.high, block, index), low.bits))
        return b.sub(value, subs.bias) if subs.bias else value

    def integer(self, name: str, block: int, index: int) -> Value:
        """An integer of a small field."""
        field = self.format[name]
        byte, shift = field.place(index)
        value = self.b.shr(self.bytes_of(name, block, byte - field.offset), shift)
        return self.b.bit_and(value, (1 << field.bits) - 1)

    def six(self, block: int, index: int) -> Value:
        """Of q4_k and q5_k: scale (0 to 7) or offset (8 to 15), six bits each; formats._six_bits tells how they lie."""
        b, group = self.b, index % 8
        d, m, both = (self.word("scales", block, WORD * i) for i in range(3))
        key = ("six", block, index // 8, group // 4)
        own, shift = (d, 0) if index < 8 else (m, 4)

        def words() -> Value:
            if group < 4:
                return b.bit_and(own, 0x3F * BYTES)
            low, top = b.bit_and(b.shr(both, shift), 0x0F * BYTES), b.bit_and(b.shr(own, 2), 0x30 * BYTES)
            return b.bit_or(low, top)

        return b.bit_and(b.shr(self.once(key, words), 8 * (group % 4)), 0xFF)

    # --- memory ----------------------------------------------------------------------------------------

    def word(self, name: str, block: int, byte: int) -> Value:
        """The word of a field that begins at a byte of it."""
        at = self.how.pieces[name, block].at + byte
        assert at % WORD == 0, (name, byte)
        return self.line(at // WORD)

    def bytes_of(self, name: str, block: int, byte: int) -> Value:
        """A field from a byte on, as far as its word goes, in the lowest bits."""
        b, piece = self.b, self.how.pieces[name, block]
        at = piece.at + byte
        found = b.shr(self.line(at // WORD), 8 * (at % WORD))
        if self.turn is None or at // WORD not in self.how.shared:
            return found
        passed = b.ir.trunc(b.mul(self.turn, 8 * piece.field.length), I32)  # bits of the blocks before
        return b.ir.lshr(found, b.splat(passed, TILE))

    def line(self, index: int) -> Value:
        def load() -> Value:
            b, at = self.b, LINE * self.how.order[index]
            ptr = self.ptr if index in self.how.shared else self.own
            b.ir.fence("acq_rel", targetscope="singlethread")  # no instruction, but LLVM leaves loads in this order
            if b.target.wants_prefetch:
                b.prefetch(ptr, at + AHEAD)
            return b.load(ptr, b.vec(I32, TILE), at, align=LINE)

        return self.once(("line", index), load)

    def once(self, key: object, make: Callable[[], Value]) -> Value:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]
