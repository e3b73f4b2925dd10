"""Activations rounded to 8 or 16 bits, in tiles, with what products of integers want to know of them.

All rows of a tile lie side by side word by word:

    [K/4][rows] four int8 | [K/block][rows] f32 scale | [K/32][rows], [K/16][rows] f32 sum | the same, i32 start

where a sum is of the integers in 32 or 16 columns, negated, because what it is for is mostly to take something off, and
a start is 128 times that: what sums of products start from whose weights are larger by 128. For panels and with 8 bits
it is given as the bits of a float that is larger by `FLOATING`: see `panel`. Activations of 16 bits are 128 a + b of
two int8, and the plane of b follows that of a.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from briolette.compiler.plan import quantised_bytes
from briolette.compiler.tiles import BLOCK, LEAST, LEVELS

from ..build import F32, I8, I32, I64, PTR, VOID, Build, Target, Value
from . import quotient_up, smaller, split

FLOATING = 12582912.0  # 1.5 * 2^23: adding it rounds numbers below 2^22 to integers, and adds these to its bits
FLOATING_BITS = 0x4B400000


@dataclass(frozen=True)
class Quantize:
    """Rows of floats into tiles of `tile` rows of integers of `bits`, of which `block` share a scale."""

    tile: int
    bits: int
    block: int


def emit_quantize(module: ir.Module, target: Target, name: str, spec: Quantize) -> ir.Function:
    """`void f(ptr x, ptr out, i64 rows, i64 columns, i64 stride, i64 tid, i64 threads)`: rows of x are `stride` floats
    apart; rows beyond the last repeat it."""
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, *[I64] * 5]), name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    x, out, rows, columns, stride, tid, threads = function.args
    tile, blocks = spec.tile, b.ir.udiv(columns, b.i64(spec.block))
    tiles = quotient_up(b, rows, b.i64(tile))
    first, last = split(b, b.mul(tiles, blocks), tid, threads)
    planes = Planes(b, columns, tile, spec.bits, spec.block)

    def block(index: Value, _: list[Value]) -> None:
        t, k = b.ir.udiv(index, blocks), b.ir.urem(index, blocks)
        to = planes.tile(out, t)

        def row(r: Value, _: list[Value]) -> None:
            at = smaller(b, b.add(b.mul(t, tile), r), b.sub(rows, 1))
            source = b.at(x, b.mul(b.add(b.mul(at, stride), b.mul(k, spec.block)), 4))
            _quantize_block(b, source, planes.moved(to, r), planes, k)

        b.loop(0, tile, 1, [], row)

    b.loop(first, last, 1, [], block)
    b.ir.ret_void()
    return function


def _quantize_block(b: Build, source: Value, to: Value, planes: Planes, k: Value) -> None:
    """The floats of block k to where one row of a tile keeps its part of them."""

    def larger(at: Value, most: list[Value]) -> list[Value]:
        v = b.load(source, b.vec(F32, 16), b.mul(at, 4))
        return [b.max(most[0], b.intrinsic("llvm.fabs", v.type, [v], over=[v.type]))]

    (most,) = b.loop(0, planes.block, 16, [b.zeros(16)], larger)
    scale = b.div(b.reduce_max(most), float(LEVELS[planes.bits]))
    some = b.ir.fcmp_ordered(">", scale, b.f32(LEAST))
    inverse = b.splat(b.ir.select(some, b.div(b.f32(1.0), scale), b.f32(0.0)), 16)
    b.store(scale, to, planes.scale(k), align=4)

    def part(at: Value, _: list[Value]) -> None:
        """32 of them."""
        start = b.add(b.mul(k, planes.block), at)
        sums = []
        for half in range(2):
            q = _rounded(b, b.mul(b.load(source, b.vec(F32, 16), b.mul(b.add(at, 16 * half), 4)), inverse))
            parts = [q]
            if planes.bits == 16:
                high = _rounded(b, b.mul(q, 1 / 128))
                parts = [high, b.sub(q, b.mul(high, 128.0))]
            for plane, values in enumerate(parts):
                narrow = b.ir.trunc(b.ir.fptosi(values, b.vec(I32, 16)), b.vec(I8, 16))
                words = b.bits(narrow, b.vec(I32, 4))
                for word in range(4):
                    place = planes.word(b.add(b.ir.lshr(start, b.i64(2)), 4 * half + word))
                    lane = b.ir.extract_element(words, b.i32(word))
                    b.store(lane, to, b.add(place, planes.integers(plane)), align=4)
            sums.append(b.neg(b.reduce_add(q)))  # exact: less than 2^24
            _store_sum(b, sums[half], to, planes, BLOCK // 2, b.add(b.ir.lshr(start, b.i64(4)), half))
        _store_sum(b, b.add(*sums), to, planes, BLOCK, b.ir.lshr(start, b.i64(5)))

    b.loop(0, planes.block, BLOCK, [], part)


def _store_sum(b: Build, less: Value, to: Value, planes: Planes, group: int, index: Value) -> None:
    """The negated sum of a group, and the start that follows from it."""
    b.store(less, to, planes.sum(group, index), align=4)
    start = b.add(b.ir.fptosi(b.mul(less, 128.0), I32), planes.base)
    b.store(start, to, planes.start(group, index), align=4)


def _rounded(b: Build, value: Value) -> Value:
    """The nearest integer, ties to even, of numbers below 2^22."""
    return b.sub(b.add(value, FLOATING), FLOATING)


class Planes:
    """Where things lie in a tile of `rows` rows of `columns` activations of `bits`, in bytes; `block` share a scale."""

    def __init__(self, b: Build, columns: int | Value, rows: int, bits: int, block: int):
        self.b, self.columns, self.rows, self.bits, self.block = b, columns, rows, bits, block
        self.base = FLOATING_BITS if bits == 8 and b.target.multiplies_panels else 0  # what starts are larger by
        # Where scales, sums of 32 and 16, and the starts of these begin, in 256ths of a byte for each activation.
        places = [32 * bits, 1024 // block]
        places += [1024 // size for size in (BLOCK, BLOCK // 2)] * 2
        self.scales, *self.of_groups = [self.part(sum(places[: n + 1])) for n in range(5)]
        self.bytes = self.part(quantised_bytes(256, bits, block))

    def integers(self, plane: int) -> int | Value:
        """Where the integers' first or second byte begins."""
        return self.part(256 * plane)

    def part(self, share: int) -> int | Value:
        """So many 256ths of a byte for each activation of the tile."""
        if isinstance(self.columns, int):
            return self.rows * self.columns * share // 256
        return self.b.ir.lshr(self.b.mul(self.columns, self.rows * share), self.b.i64(8))

    def tile(self, start: Value, index: Value) -> Value:
        return self.b.at(start, self.b.mul(index, self.bytes))

    def moved(self, start: Value, row: Value) -> Value:
        return self.b.at(start, self.b.mul(row, 4))

    def word(self, index: Value) -> Value:
        return self.b.mul(index, 4 * self.rows)

    def scale(self, block: Value) -> Value:
        return self.b.add(self.word(block), self.scales)

    def sums(self, group: int) -> int | Value:
        """Where the sums of groups of 32 or 16 begin."""
        return self.of_groups[0 if group == BLOCK else 1]

    def starts(self, group: int) -> int | Value:
        return self.of_groups[2 if group == BLOCK else 3]

    def sum(self, group: int, index: Value) -> Value:
        return self.b.add(self.word(index), self.sums(group))

    def start(self, group: int, index: Value) -> Value:
        return self.b.add(self.word(index), self.starts(group))
