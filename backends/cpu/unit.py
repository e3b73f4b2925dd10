"""Packed weights as kernels read them: the fields of a unit, in lanes."""

from __future__ import annotations

from collections.abc import Callable

from briolette.compiler.tiles import TILE

from ..formats import Format
from .build import F32, I16, I32, Build, Value
from .packing import AHEAD, LINE, WORD, Packing
from .quads import BYTES, emit_lookup


def bias_of(format: Format) -> int:
    """What has to be taken off the unsigned bytes that weights become."""
    packed = format.quants
    assert packed is not None
    return 128 if packed.table or format[packed.low].bits == 8 else packed.bias


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
        return bias_of(self.format)

    @property
    def bits(self) -> int:
        """Of the bytes that `weights` gives."""
        packed = self.format.quants
        assert packed is not None
        low = self.format[packed.low]
        return 8 if packed.table else low.bits + (self.format[packed.high].bits if packed.high else 0)

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
