"""Coded cache planes (`cpu.coded`) in kernels: bytes of a group to codes, codes to f32.

All vectors have 16 lanes, a position in each, whatever the target's are: LLVM cuts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import TypeAlias

from ..build import F32, I16, I32, I64, Build, Value
from ..coded import GROUP, LINE, UNIT, BitPlane, Coded
from ..quads import BYTES

Permute: TypeAlias = Callable[[Build, Sequence[float], Value], Value]


class Codes:
    """Rings of a layout. Units are read in *turns*: as many as lie together in a vector of the narrowest bit plane."""

    def __init__(self, b: Build, layout: Coded):
        self.b, self.layout = b, layout
        self.turn = min(layout.units, max(plane.together for plane in layout.planes))  # units
        self.turns = layout.width // (UNIT * self.turn)  # of a block

    @cached_property
    def table(self) -> list[float]:
        return [float(value) for value in self.layout.codec.table(self.layout.size)]

    # -- where things lie --

    def ring_bytes(self, capacity: Value) -> Value:
        b, layout = self.b, self.layout
        used = b.mul(b.shr(capacity, 4), layout.group_bytes + layout.scale_bytes)
        return b.bit_and(b.add(used, LINE - 1), -LINE)

    def at(self, ring: Value, place: Value) -> Value:
        """The codes of the group that has a place."""
        return self.b.at(ring, self.b.mul(self.b.shr(place, 4), self.layout.group_bytes))

    def scales(self, ring: Value, capacity: Value, place: Value) -> Value:
        """The scales of the group that has a place."""
        return self.b.at(self.at(ring, capacity), self.b.mul(self.b.shr(place, 4), self.layout.scale_bytes))

    def scale(self, scales: Value, block: Value) -> Value:
        """A block's scales, f32."""
        b = self.b
        return b.f16_to_f32(b.load(scales, b.vec(I16, GROUP), b.mul(block, 2 * GROUP)))

    def of_turn(self, group: Value, turn: Value) -> Units:
        """The units of a turn, counted through all blocks, of a group."""
        b = self.b
        return Units(b, self, [b.at(group, b.mul(turn, LINE * self.turn * p.bits // 8)) for p in self.layout.planes])


class Units:
    """The units of a turn. starts: for each bit plane, the group moved on by the turns before."""

    def __init__(self, b: Build, codes: Codes, starts: Sequence[Value]):
        self.b, self.codes, self.starts = b, codes, starts
        self.loaded: dict[int, Value] = {}

    def vector(self, start: Value, offset: int) -> Value:
        if offset not in self.loaded:
            self.loaded[offset] = self.b.load(start, self.b.vec(I32, GROUP), offset, align=LINE)
        return self.loaded[offset]

    def bytes_of(self, unit: int) -> Value:
        """The codes of a unit, in the bytes of 16 i32."""
        planes = zip(self.codes.layout.planes, self.starts, strict=True)
        return reduce(self.b.bit_or, [self.part(unit, plane, start) for plane, start in planes])

    def part(self, unit: int, plane: BitPlane, start: Value) -> Value:
        b, (offset, bit) = self.b, plane.place(unit)
        vector = self.vector(start, offset)
        if plane.bits == 8:
            return vector
        moved = b.shr(vector, bit - plane.shift) if bit >= plane.shift else b.shl(vector, plane.shift - bit)
        return b.bit_and(moved, ((1 << plane.bits) - 1 << plane.shift) * BYTES)

    def floats(self, unit: int) -> list[Value]:
        """What its codes stand for before the scale: a vector for each of its dimensions."""
        b, codes = self.b, self.bytes_of(unit)
        return [lookup(b, self.codes.table, b.shr(codes, 8 * i)) for i in range(UNIT)]


def lookup(b: Build, table: Sequence[float], index: Value) -> Value:
    """16 entries of a table of up to 256 (a power of two), by the low bits of i32 lanes, whatever is above them."""
    wide, n = b.vec(F32, GROUP), len(table)
    if all(value == table[0] + i for i, value in enumerate(table)):
        return b.add(b.to_f32(b.bit_and(index, n - 1)), table[0])
    if b.target.has("avx512f"):
        return _halved(b, table, index, 32, _permute_512)
    if b.target.has("avx2") and n <= 64:
        halves = [_halved(b, table, b.slice(index, at, 8), 8, _permute_256) for at in (0, 8)]
        return b.shuffle(halves[0], range(GROUP), halves[1])
    entries, out = b.table(F32, list(table)), b.undefined(wide)
    for lane in range(GROUP):
        one = b.bit_and(b.ir.extract_element(index, b.i32(lane)), n - 1)
        entry = b.load(entries, F32, b.ir.zext(b.shl(one, 2), I64), align=4)
        out = b.ir.insert_element(out, entry, b.i32(lane))
    return out


def _halved(b: Build, table: Sequence[float], index: Value, most: int, permute: Permute) -> Value:
    """A choice between halves of the table, by a bit of the index, down to what a permutation takes."""
    if len(table) <= most:
        return permute(b, table, index)
    half = len(table) // 2
    low, high = (_halved(b, part, index, most, permute) for part in (table[:half], table[half:]))
    above = b.ir.icmp_unsigned("!=", b.bit_and(index, half), b.const(index.type, 0))
    return b.ir.select(above, high, low)


def _permute_512(b: Build, table: Sequence[float], index: Value) -> Value:
    wide = b.vec(F32, 16)
    if len(table) <= 16:
        return b.lookup(b.const(wide, [*table] * (16 // len(table))), index)
    halves = [b.const(wide, part) for part in (table[:16], table[16:])]
    return b.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", wide, [halves[0], index, halves[1]])


def _permute_256(b: Build, table: Sequence[float], index: Value) -> Value:
    wide = b.vec(F32, 8)
    return b.intrinsic("llvm.x86.avx2.permps", wide, [b.const(wide, [*table] * (8 // len(table))), index])
