"""Codes of a cache plane to the levels that they stand for, as bytes, for products in integers.

A level is a whole number of equal steps: one byte where that is fine enough; two, the high one first, where a codec has
more levels than a byte tells apart. Codecs that are evenly spaced need no table: their codes are such numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from briolette.compiler.codecs import Codec

from ..build import I8, I32, I64, Build, Value
from ..coded import GROUP, LINE, UNIT, Coded
from ..quads import BYTES, emit_lookup
from .codes import Units

RADIX = 256  # of digits
LARGEST = {1: 127, 2: 127 * RADIX + 127}  # that so many signed digits hold
FINE = 64  # levels; more than these are too close to each other for a byte

# The bytes of lanes that hold four dimensions of a position each, so that a lane holds four positions of a dimension:
# of every four lanes, one for each of the dimensions.
ACROSS = [16 * four + UNIT * position + dim for four in range(4) for dim in range(UNIT) for position in range(4)]


def digits_of(value: int, count: int, signed: bool) -> list[int]:
    """A whole number in so many digits of a byte, the high one first: from -128 to 127, or only that one signed."""
    if count == 1:
        return [value]
    low = (value + 128) % RADIX - 128 if signed else value % RADIX
    return [(value - low) // RADIX, low]


def best_step(codec: Codec, size: int, digits: int) -> float:
    """The step in which a table is told with the least error, of normal values: it may fit levels that are few."""
    table, thresholds = (np.asarray(x, np.float64) for x in (codec.table(size), codec.thresholds(size)))
    edges = [0.5 * (1 + math.erf(x / math.sqrt(2))) for x in thresholds]
    often = np.diff([0.0, *edges, 1.0])
    steps = np.abs(table).max() / np.linspace(0.7, 1.0, 1000) / LARGEST[digits]
    errors = [np.sum(often * (np.rint(table / step) * step - table) ** 2) for step in steps]
    return float(steps[int(np.argmin(errors))])


class Levels:
    """What codes of a layout stand for, in `digits` bytes and units of `step`. Signed digits are bytes from -128 to
    127. Of others the first has `bias` added, and all are bytes from 0 to 255."""

    def __init__(self, b: Build, layout: Coded, signed: bool):
        self.b, self.layout, self.signed = b, layout, signed
        table = [float(value) for value in layout.codec.table(layout.size)]
        self.plain = all(value == table[0] + i for i, value in enumerate(table))
        self.digits = 1 if self.plain or len(table) <= FINE else 2
        self.step = 1.0 if self.plain else best_step(layout.codec, layout.size, self.digits)
        self.bias = 0 if signed else -int(table[0]) if self.plain else 128
        levels = (digits_of(round(value / self.step), self.digits, signed) for value in table)
        first, *others = zip(*levels, strict=True)
        self.tables = [[digit + self.bias for digit in first], *others]

    def of(self, units: Units, unit: int) -> list[Value]:
        """The digits of a unit's levels, each in the bytes of 16 i32."""
        b, index, bits = self.b, index_of(units, unit), self.layout.codec.bits
        if self.plain and not self.signed:
            return [index if bits == 8 else b.bit_and(index, ((1 << bits) - 1) * BYTES)]
        if self.plain and bits == 8:
            return [b.ir.xor(index, b.const(index.type, 0x80 * BYTES))]
        return [lookup(b, table, index) for table in self.tables]


class Across(Units):
    """Units whose bytes lie `ACROSS`."""

    def vector(self, start: Value, offset: int) -> Value:
        if offset not in self.loaded:
            b = self.b
            found = b.load(start, b.vec(I8, LINE), offset, align=LINE)
            self.loaded[offset] = b.bits(b.shuffle(found, ACROSS), b.vec(I32, GROUP))
        return self.loaded[offset]


def index_of(units: Units, unit: int) -> Value:
    """The codes of a unit in the bytes of 16 i32, with anything in the bits above those of a code."""
    b = units.b
    index: Value | None = None
    for plane, start in zip(reversed(units.codes.layout.planes), reversed(units.starts), strict=True):
        offset, bit = plane.place(unit)
        up, vector = plane.shift - bit, units.vector(start, offset)
        moved = b.shl(vector, up) if up >= 0 else b.shr(vector, -up)
        if index is not None:  # the bits below are those of the planes before
            below = (1 << plane.shift) - 1
            moved = b.bit_or(b.bit_and(index, below * BYTES), b.bit_and(moved, (0xFF - below) * BYTES))
        index = moved
    assert index is not None
    return index


def lookup(b: Build, table: Sequence[int], index: Value) -> Value:
    """Bytes of a table of a power of two, by the low bits of the bytes of 16 i32, whatever is above them."""
    target, count = b.target, len(table)
    if target.has("avx512vbmi"):
        return _halved(b, [*table] * max(1, 64 // count), index, 64, _permute)
    if target.has("ssse3") or target.arm:
        return _halved(b, [*table] * max(1, 16 // count), index, 16, _shuffle)
    entries, out = b.table(I8, [*table]), b.const(index.type, 0)
    for lane in range(GROUP):
        word, four = b.ir.extract_element(index, b.i32(lane)), b.i32(0)
        for place in range(UNIT):
            one = b.bit_and(b.shr(word, 8 * place), count - 1)
            byte = b.ir.zext(b.load(entries, I8, b.ir.zext(one, I64)), I32)
            four = b.bit_or(four, b.shl(byte, 8 * place))
        out = b.ir.insert_element(out, four, b.i32(lane))
    return out


def _halved(b: Build, table: Sequence[int], index: Value, most: int, entries) -> Value:
    """A choice between halves of the table, by a bit of the index, down to what one instruction takes."""
    half = len(table) // 2
    if len(table) <= most:
        return entries(b, table, index)
    low, high = (_halved(b, part, index, most, entries) for part in (table[:half], table[half:]))
    some = b.vec(I8, LINE)
    which = b.bit_and(b.bits(index, some), half)
    above = b.ir.icmp_unsigned("!=", which, b.const(some, 0))
    return b.bits(b.ir.select(above, b.bits(high, some), b.bits(low, some)), index.type)


def _permute(b: Build, table: Sequence[int], index: Value) -> Value:
    some = b.vec(I8, LINE)
    found = b.intrinsic("llvm.x86.avx512.permvar.qi.512", some, [b.const(some, table), b.bits(index, some)])
    return b.bits(found, index.type)


def _shuffle(b: Build, table: Sequence[int], index: Value) -> Value:
    return emit_lookup(b, table, b.bit_and(index, 0x0F * BYTES))
