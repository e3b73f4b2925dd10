"""Code that reads GGUF blocks where they lie and leaves their elements in f32 vector registers.

Two forms, both derived from the table in `briolette.backends.formats`:

* `emit_block`, `emit_span`: the elements themselves, bit-exact with the numpy decoder.
* `emit_dot`: the inner products of several rows' blocks with one stretch of x, in few instructions.

Bytes are widened to i32 lanes straight from memory (one folded load on x86) and masked there; with AVX-512, a
16-entry register look-up turns four packed bits into a float at once, without a mask, conversion or bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, reduce

from llvmlite import ir

from briolette.backends.cpu.build import F32, I8, I16, I32, PTR, Build, Value, lanes_of
from briolette.backends.formats import Field, Format, Packed
from briolette.compiler.errors import BrioletteError


def unit(fmt: Format, lanes: int) -> int:
    """Elements that one emission handles: a block, or a vector of a format of plain numbers."""
    return fmt.elements if fmt.quants else lanes


def emit_block(b: Build, fmt: Format, ptr: Value, lanes: int | None = None) -> list[Value]:
    """Load one `unit` at `ptr` (unaligned): its elements in order, as f32 vectors of `lanes`."""
    lanes = lanes or b.lanes
    if fmt.quants is None:
        return [_plain(b, fmt, ptr, lanes, 0)]
    quants, groups = _Quants(b, fmt, ptr, lanes), _Groups(b, fmt, ptr, lanes)
    vectors = []
    for g in range(fmt.groups):
        elements = range(g * fmt.group, (g + 1) * fmt.group, lanes)
        vectors += quants.scaled(elements, groups.scale(g), groups.offset(g), fused=False)
    return vectors


def emit_span(
    b: Build, fmt: Format, row: Value, start: int | Value, count: int, lanes: int | None = None
) -> list[Value]:
    """Elements `start .. start + count` of the row at `row`, as f32 vectors of `lanes`.

    `start` (an int or an i64) is a multiple of the block size; that is not checked where it is known only at
    run time. Raises BrioletteError where `count`, or a constant `start`, does not fit.
    """
    lanes = lanes or b.lanes
    step = unit(fmt, lanes)
    if count % step or (isinstance(start, int) and start % fmt.elements):
        raise BrioletteError(f"{count} elements of {fmt.name} from {start} are not whole units of {step}")
    if isinstance(start, int):
        first = b.at(row, start // fmt.elements * fmt.bytes)
    else:
        blocks = start if fmt.elements == 1 else b.shr(start, fmt.elements.bit_length() - 1)
        first = b.at(row, b.mul(blocks, fmt.bytes))
    stride = step // fmt.elements * fmt.bytes
    return [v for i in range(count // step) for v in emit_block(b, fmt, b.at(first, i * stride), lanes)]


def emit_dot(
    b: Build,
    fmt: Format,
    ptrs: Sequence[Value],
    x: Value,
    lanes: int | None,
    accs: Sequence[Sequence[Value]],
) -> list[list[Value]]:
    """Add the products of one `unit` of every row with x to the rows' accumulators; returns the new ones.

    ptrs: where each row's block lies. x: pointer to the `unit`'s f32 activations (unaligned), loaded once for
    all rows. accs: for each row one or more f32 vectors of `lanes`, taken in turn; the row's inner product is
    the sum of all their lanes.
    """
    lanes = lanes or b.lanes
    sums = [_Rotating(list(row)) for row in accs]
    if fmt.quants is None:
        xs = b.load(x, b.vec(F32, lanes))
        for ptr, total in zip(ptrs, sums, strict=True):
            total.put(b.fma(_plain(b, fmt, ptr, lanes, 0), xs, total.take()))
        return [total.values for total in sums]
    rows = [
        (_Quants(b, fmt, ptr, lanes), _Groups(b, fmt, ptr, lanes, i), total)
        for i, (ptr, total) in enumerate(zip(ptrs, sums, strict=True))
    ]
    tile = _tile(fmt)
    for start in range(0, fmt.elements, tile):
        groups_of_x = [
            _Activations(b, x, range(e, e + fmt.group, lanes)) for e in range(start, start + tile, fmt.group)
        ]
        for quants, groups, total in rows:
            for g, xs in enumerate(groups_of_x, start // fmt.group):
                _dot_group(b, fmt, quants, groups.scale(g), groups.offset(g), xs, total)
    return [total.values for total in sums]


def _dot_group(
    b: Build,
    fmt: Format,
    quants: _Quants,
    scale: Value,
    offset: Value | None,
    xs: _Activations,
    total: _Rotating,
) -> None:
    """Add one group's products, by whichever of the two forms `_factor_scale` chooses."""
    if not _factor_scale(fmt, quants.lanes):
        for w, x in zip(quants.scaled(xs.elements, scale, offset, fused=True), xs.vectors, strict=True):
            total.put(b.fma(w, x, total.take()))
        return
    part: Value = None
    for e, x in zip(xs.elements, xs.vectors, strict=True):
        q = quants.vector(e)
        part = b.mul(q, x) if part is None else b.fma(q, x, part)
    total.put(b.fma(scale, part, total.take()))
    if offset is not None:
        total.put(b.fma(offset, xs.sum, total.take()))


def _factor_scale(fmt: Format, lanes: int) -> bool:
    """Whether sum(q * x) scaled once a group takes fewer operations than scaling every q."""
    vectors = fmt.group // lanes
    return vectors + (1 if fmt.offsets is None else 2) < 2 * vectors


def _tile(fmt: Format) -> int:
    """Elements that share the bytes of the low field: worked on together, so that bytes load once."""
    assert fmt.quants is not None
    low = fmt[fmt.quants.low]
    return 32 if low.bits == 8 else low.run * (8 // low.bits)


class _Activations:
    """A group's stretch of x, loaded once for all rows, and its sum where offsets want it."""

    def __init__(self, b: Build, x: Value, elements: range):
        self.b, self.elements = b, elements
        self.vectors = [b.load(x, b.vec(F32, elements.step), 4 * e) for e in elements]

    @cached_property
    def sum(self) -> Value:
        return reduce(self.b.add, self.vectors)


class _Rotating:
    """A row's accumulators, taken in turn so that additions do not wait for one another."""

    def __init__(self, values: list[Value]):
        self.values, self.next = values, 0

    def take(self) -> Value:
        return self.values[self.next]

    def put(self, value: Value) -> None:
        self.values[self.next] = value
        self.next = (self.next + 1) % len(self.values)


def _plain(b: Build, fmt: Format, ptr: Value, lanes: int, offset: int) -> Value:
    if fmt.name == "f32":
        return b.load(ptr, b.vec(F32, lanes), offset)
    bits = b.load(ptr, b.vec(I16, lanes), offset)
    return b.f16_to_f32(bits) if fmt.name == "f16" else b.bf16_to_f32(bits)


def _number(b: Build, one: Field, ptr: Value) -> Value:
    """A scalar field as f32."""
    if one.type == "f16":
        return b.f16_to_f32(b.load(ptr, I16, one.offset))
    assert one.type == "e8m0"
    # Half of 2^(e-127); the two smallest are subnormal. formats.numbers says the same in numpy.
    e = b.ir.zext(b.load(ptr, I8, one.offset), I32)
    normal = b.shl(b.sub(e, 1), 23)
    tiny = b.shl(b.i32(0x00200000), e)
    return b.bits(b.ir.select(b.ir.icmp_unsigned("<", e, b.i32(2)), tiny, normal), F32)


class _Quants:
    """The integers q of the block at `ptr`, as f32 vectors. Bytes that vectors share are loaded once."""

    def __init__(self, b: Build, fmt: Format, ptr: Value, lanes: int):
        assert fmt.quants is not None
        self.b, self.ptr, self.lanes, self.packed = b, ptr, lanes, fmt.quants
        self.low = fmt[fmt.quants.low]
        self.high = fmt[fmt.quants.high] if fmt.quants.high else None
        self.loaded: dict[int, Value] = {}

    def vector(self, e: int) -> Value:
        """Elements e .. e + lanes."""
        b, low, bias = self.b, self.low, self.packed.bias
        if low.bits == 8:
            return b.to_f32(b.load(self.ptr, b.vec(I8, self.lanes), low.offset + e), signed=True)
        shifted = self._shifted(low, e)
        if self.packed.table or b.quick_lookup(self.lanes):
            q = b.lookup(self._table(), shifted)
            return q if self.high is None else self._raise(q, self.high, e)
        q = b.bit_and(shifted, (1 << low.bits) - 1)
        if self.high is not None:
            q = b.bit_or(q, self._high_bits(self.high, e))
        return b.to_f32(b.sub(q, bias) if bias else q, signed=True)

    def scaled(self, elements: range, scale: Value, offset: Value | None, fused: bool) -> list[Value]:
        """`scale * q + offset`, a vector for every `lanes` elements of a group; `fused` rounds once."""
        b = self.b

        def apply(q: Value) -> Value:
            if offset is None:
                return b.mul(scale, q)
            return b.fma(scale, q, offset) if fused else b.add(b.mul(scale, q), offset)

        if self.lanes == 16 and b.quick_lookup(16) and self.low.bits < 8 and self.high is None:
            # There are sixteen values of q at most: scale the table, then look weights up in it.
            table = apply(b.const(b.vec(F32, 16), self._table()))
            return [b.lookup(table, self._shifted(self.low, e)) for e in elements]
        return [apply(self.vector(e)) for e in elements]

    def _table(self) -> list[int]:
        """q by the four lowest bits, of which the low field may own fewer."""
        mask = (1 << self.low.bits) - 1
        return list(self.packed.table or [(i & mask) - self.packed.bias for i in range(16)])

    def _bytes(self, offset: int) -> Value:
        if offset not in self.loaded:
            raw = self.b.load(self.ptr, self.b.vec(I8, self.lanes), offset)
            self.loaded[offset] = self.b.widen(raw)
        return self.loaded[offset]

    def _shifted(self, one: Field, e: int) -> Value:
        """The packed integers of `one` in the lowest bits of i32 lanes, their neighbours still above them."""
        byte, shift = one.place(e)
        return self.b.shr(self._bytes(byte), shift)

    def _mask(self, one: Field, e: int) -> Value:
        """A field of single bits as `<lanes x i1>`."""
        b = self.b
        byte, shift = one.place(e)
        if one.run == 1:  # the bits of consecutive elements are consecutive
            ty = I16 if self.lanes == 16 else I8
            return b.mask(b.load(self.ptr, ty, byte), self.lanes, shift)
        picked = b.bit_and(self._bytes(byte), 1 << shift)
        return b.ir.icmp_unsigned("!=", picked, ir.Constant(picked.type, None))

    def _high_bits(self, one: Field, e: int) -> Value:
        """The bits of the high field, moved to where they belong above the low field's."""
        b, up = self.b, self.low.bits
        i32s = b.vec(I32, self.lanes)
        if one.run == 1:
            return b.ir.select(self._mask(one, e), b.const(i32s, 1 << up), ir.Constant(i32s, None))
        byte, shift = one.place(e)
        raw = self._bytes(byte)
        moved = b.shl(raw, up - shift) if up >= shift else b.shr(raw, shift - up)
        return b.bit_and(moved, ((1 << one.bits) - 1) << up)

    def _raise(self, q: Value, one: Field, e: int) -> Value:
        """q plus what the high bits are worth, as floats: small integers, so the addition is exact."""
        b, worth = self.b, 1 << self.low.bits
        if one.bits == 1:
            return b.ir.select(self._mask(one, e), b.add(q, worth), q)
        mask = (1 << one.bits) - 1
        return b.add(q, b.lookup([(i & mask) * worth for i in range(16)], self._shifted(one, e)))


class _Groups:
    """Scale and offset of each group of the block at `ptr`, repeated in `lanes`."""

    def __init__(self, b: Build, fmt: Format, ptr: Value, lanes: int, row: int = 0):
        self.b, self.fmt, self.lanes, self.row = b, fmt, lanes, row
        d = _number(b, fmt["d"], ptr)
        least = _number(b, fmt[fmt.offsets], ptr) if fmt.offsets else None
        self.scales, self.offsets = d, least
        if fmt.subs is not None:
            subs, n = b.to_f32(_sub_integers(b, fmt, fmt.subs, ptr), signed=True), fmt.groups
            self.scales = self._keep("scale", b.mul(b.slice(subs, 0, n), b.splat(d, n)))
            if least is not None:
                self.offsets = self._keep("offset", b.mul(b.slice(subs, n, n), b.splat(b.neg(least), n)))

    def scale(self, g: int) -> Value:
        return self._repeat(self.scales, g)

    def offset(self, g: int) -> Value | None:
        return None if self.offsets is None else self._repeat(self.offsets, g)

    def _keep(self, what: str, vector: Value) -> Value:
        """x86 repeats a number from memory for nothing, but from a register with the shuffle unit, which
        look-ups and widening keep busy. So scales take the way over the stack there."""
        if not self.b.target.has("avx"):
            return vector
        slot = self.b.scratch(vector.type, what, self.row)
        self.b.store(vector, slot, align=32)
        return slot

    def _repeat(self, kept: Value, g: int) -> Value:
        if kept.type == PTR:
            return self.b.splat(self.b.load(kept, F32, 4 * g, align=4), self.lanes)
        if lanes_of(kept) == 1:
            return self.b.splat(kept, self.lanes)
        return self.b.lane(kept, g, self.lanes)


def _sub_integers(b: Build, fmt: Format, packed: Packed, ptr: Value) -> Value:
    """All group scales (and minima) of a block in one integer vector."""
    low = _unpack(b, fmt[packed.low], ptr)
    if packed.high is not None:
        low = b.bit_or(low, b.shl(_unpack(b, fmt[packed.high], ptr), fmt[packed.low].bits))
    return b.sub(low, packed.bias) if packed.bias else low


def _unpack(b: Build, one: Field, ptr: Value) -> Value:
    """The integers of a small field in order, as i32 lanes. Words of four bytes are shifted side by side."""
    if one.bits == 8:
        return b.widen(b.load(ptr, b.vec(I8, one.length), one.offset), signed=one.type == "i8")
    if one.bits == 6:
        # (d, m, both) of formats._six_bits. The fourth word that is loaded belongs to the next field.
        w = b.load(ptr, b.vec(I32, 4), one.offset)
        nibbles = b.shr(b.shuffle(w, [0, 2, 1, 2]), [0, 0, 0, 4])
        tops = b.shr(b.shuffle(w, [0, 0, 1, 1]), 2)
        low = b.bit_and(nibbles, [0x3F3F3F3F, 0x0F0F0F0F] * 2)
        words = b.bit_or(low, b.bit_and(tops, [0, 0x30303030] * 2))
    elif one.run == 1:
        n, bits = one.length * 8 // one.bits, I32 if one.length == 4 else I16
        whole = b.load(ptr, bits, one.offset)
        whole = whole if bits is I32 else b.ir.zext(whole, I32)
        return b.bit_and(b.shr(b.splat(whole, n), range(0, n * one.bits, one.bits)), (1 << one.bits) - 1)
    else:
        places = [one.place(i) for i in range(0, one.length * 8 // one.bits, 4)]
        w = b.load(ptr, b.vec(I32, max(one.length // 4, 1)), one.offset)
        w = b.shuffle(w, [(byte - one.offset) // 4 for byte, _ in places])
        mask = ((1 << one.bits) - 1) * 0x01010101
        words = b.bit_and(b.shr(w, [shift for _, shift in places]), mask)
    return b.widen(b.bits(words, b.vec(I8, 4 * lanes_of(words))))
