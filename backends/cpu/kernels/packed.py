"""Products of packed weights with activations of 8 or 16 bits: integers within 32 columns, f32 beyond.

One inner routine for each format and number of rows serves all sizes: 16 weight rows by a tile of activations.
A weight's bytes become a vector of unsigned bytes once and are multiplied with every row of the tile; what their bias
and the formats' offsets add is made good with the sums that come with the activations. Decoding is a tile of one row.

What is scarce is the multiplier, which integer and float products share: conversions, shifts and additions run beside
it. So a group of weights costs its integer products and one float product with its scale (another where it has an
offset), and the activations' scale is applied once a block.

Activations lie in tiles, all rows of a tile side by side word by word:

    [K/4][rows] four int8 | [K/block][rows] f32 scale | [K/32][rows] i32 sum | [K/16][rows] i32 sum

where a sum is of the integers in 32 or 16 columns, negated, because what it is for is mostly to take a bias off.
Activations of 16 bits are 128 a + b of two int8, and the plane of b follows that of a.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from llvmlite import ir

from briolette.compiler.ir import Node
from briolette.compiler.plan import quantised_bytes
from briolette.compiler.tiles import BLOCK, LEAST, LEVELS, TILE

from ..build import F32, I8, I32, I64, PTR, VOID, Build, Target, Value
from ..packing import LINE, Packing, packing
from ..quads import emit_dot4
from ..unit import Unit
from . import quotient_up, smaller, split
from .linear import Linear, Products

ROWS = 8  # rows of activations multiplied at a time: more are no faster, and make more code
FEW = 2  # the same of a small batch: weights come from memory as fast as for one row


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
            sums.append(b.ir.fptosi(b.neg(b.reduce_add(q)), I32))  # exact: less than 2^24
            b.store(sums[half], to, planes.small_sum(b.add(b.ir.lshr(start, b.i64(4)), half)), align=4)
        b.store(b.add(*sums), to, planes.sum(b.ir.lshr(start, b.i64(5))), align=4)

    b.loop(0, planes.block, BLOCK, [], part)


def _rounded(b: Build, value: Value) -> Value:
    """The nearest integer, ties to even, of numbers below 2^22: adding and taking away 1.5 * 2^23 rounds."""
    return b.sub(b.add(value, 12582912.0), 12582912.0)


class Planes:
    """Where things lie in a tile of `rows` rows of `columns` activations of `bits`, in bytes; `block` share a scale."""

    def __init__(self, b: Build, columns: int | Value, rows: int, bits: int, block: int):
        self.b, self.columns, self.rows, self.bits, self.block = b, columns, rows, bits, block
        # Where scales, sums and small sums begin, in 256ths of a byte for each activation.
        scales = 32 * bits
        sums = scales + 1024 // block
        self.starts = [self.part(start) for start in (scales, sums, sums + 1024 // BLOCK)]
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
        return self.b.add(self.word(block), self.starts[0])

    def sum(self, block: Value) -> Value:
        return self.b.add(self.word(block), self.starts[1])

    def small_sum(self, half: Value) -> Value:
        return self.b.add(self.word(half), self.starts[2])


def emit_inner(module: ir.Module, target: Target, how: Packing, rows: int, bits: int, block: int) -> ir.Function:
    """`void f(ptr weights, i64 units, ptr x, i64 columns, ptr out)`: a tile of weights by a tile of activations.

    A scale is for `block` activations. out: f32 [rows][16], aligned.
    """
    name = f"packed.{how.blocks}.{how.format.name}.{rows}.{bits}.{block}"
    found = module.globals.get(name)
    if found is not None:
        return found
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, PTR, I64, PTR]), name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    weights, units, x, columns, out = function.args
    planes = Planes(b, columns, rows, bits, block)
    starts = [b.at(x, start) for start in planes.starts]
    bytes_of = [b.at(x, planes.integers(plane)) for plane in range(bits // 8)]
    step = how.elements // how.turns
    together = max(1, block // step)  # turns that share the activations' scale

    def lanes(index: Value) -> Lanes:
        """The activations of a turn."""
        before = b.mul(index, step * rows)  # elements
        words = tuple(b.at(plane, before) for plane in bytes_of)
        scales, sums, small = (
            b.at(start, b.ir.lshr(before, b.i64((size // 4).bit_length() - 1)))
            for start, size in zip(starts, (block, BLOCK, BLOCK // 2), strict=True)
        )
        return Lanes(b, rows, block, words, scales, sums, small)

    def turn(index: Value) -> Unit:
        """The weights of a turn."""
        here = b.at(weights, b.mul(b.ir.udiv(index, b.i64(how.turns)), how.bytes * TILE))
        return Unit(b, how, here, b.ir.urem(index, b.i64(how.turns)) if how.turns > 1 else None)

    def several(first: Value, totals: list[Value]) -> list[Value]:
        parts = b.loop(
            *(first, b.add(first, together), 1, [b.zeros(TILE)] * rows),
            lambda index, carried: _Sums(turn(index), lanes(index), carried).made(),
        )
        return lanes(first).scaled(0, parts, totals)

    def one(index: Value, totals: list[Value]) -> list[Value]:
        return _Sums(turn(index), lanes(index), totals, scaled=True).made()

    totals = b.loop(*(0, b.mul(units, how.turns), together, [b.zeros(TILE)] * rows), several if together > 1 else one)
    for row, total in enumerate(totals):
        b.store(total, out, LINE * row, align=LINE)
    b.ir.ret_void()
    return function


@dataclass(frozen=True)
class Lanes:
    """The activations of a turn, one number in all lanes at a time."""

    b: Build
    rows: int
    block: int
    words: tuple[Value, ...]  # the integers, a byte each
    scales: Value
    sums: Value
    small: Value

    def word(self, plane: int, element: int, row: int) -> Value:
        """Four int8 from an element on."""
        return self.all_lanes(self.words[plane], I32, element * self.rows + 4 * row)

    def less(self, element: int, count: int, row: int) -> Value:
        """i32: the sum of 16 or 32 integers from an element on, negated."""
        plane = self.sums if count == BLOCK else self.small
        return self.all_lanes(plane, I32, 4 * (element // count * self.rows + row))

    def scaled(self, element: int, parts: list[Value], totals: list[Value]) -> list[Value]:
        """Totals of all rows with the sums of a block added."""
        at = 4 * (element // self.block) * self.rows
        scales = [self.all_lanes(self.scales, F32, at + 4 * row) for row in range(self.rows)]
        return [self.b.fma(*all_of) for all_of in zip(parts, scales, totals, strict=True)]

    def all_lanes(self, ptr: Value, ty: ir.Type, offset: int) -> Value:
        return self.b.lane(self.b.load(ptr, self.b.vec(ty, 1), offset, align=4), 0, TILE)


class _Sums:
    """The products of a turn, added to `totals`: as they are, or each block of them `scaled` as its activations are."""

    def __init__(self, unit: Unit, x: Lanes, totals: list[Value], scaled: bool = False):
        self.b, self.unit, self.x, self.format = x.b, unit, x, unit.format
        self.totals, self.is_scaled = totals, scaled
        self.blocks: dict[int, list[Value]] = {}  # sums of blocks in the making, where they are scaled
        self.left = Counter(element // x.block for element in range(0, self.elements, 4))

    @property
    def elements(self) -> int:
        return self.unit.how.elements // self.unit.how.turns

    def made(self) -> list[Value]:
        fmt, count = self.format, self.elements // self.format.elements
        # Few rows read weights from memory: in their order. Many read them again and again; what counts for them is how
        # few sums are in the making at a time.
        apart = [tuple(range(at, at + BLOCK, 4)) for at in range(0, fmt.elements, BLOCK)]
        for block in range(count):
            for span in self.unit.how.spans if self.x.rows <= FEW else apart:
                self.span(block, span)
        return self.totals

    def span(self, block: int, span: tuple[int, ...]) -> None:
        """Elements of a block of weights, by fours."""
        x, fmt = self.x, self.format
        left = Counter(element // fmt.group for element in span)
        sums: dict[int, list[list[Value]]] = {}
        for element in span:
            group, at = element // fmt.group, block * fmt.elements + element
            quad = self.unit.weights(block, element)
            if group not in sums:
                sums[group] = [self.start(at, row) for row in range(x.rows)]
            # Rows side by side, because a product waits for the one before it of the same row.
            for plane in range(len(x.words)):
                for row, parts in enumerate(sums[group]):
                    parts[plane] = emit_dot4(self.b, parts[plane], quad, x.word(plane, at, row), _bits(self.unit))
            left[group] -= 1
            if not left[group]:
                self.group(block, group, sums.pop(group))
            self.count(at)

    def start(self, element: int, row: int) -> list[Value]:
        """What the sums of a group begin with, by plane: what the weights' bias adds to them is taken off."""
        b, bias = self.b, self.unit.bias
        nothing = b.const(b.vec(I32, TILE), 0)
        first = b.shl(self.x.less(element, self.format.group, row), bias.bit_length() - 1) if bias else nothing
        return [*[nothing] * (len(self.x.words) - 1), first]

    def group(self, block: int, group: int, parts: list[list[Value]]) -> None:
        """Adds the products of a group, by plane of the activations' bytes, to the sums of all rows."""
        b, x, fmt = self.b, self.x, self.format
        at = block * fmt.elements + group * fmt.group
        scale, offset = self.unit.scale(block, group), self.unit.offset(block, group)
        sums = self.blocks.get(at // x.block, [b.zeros(TILE)] * x.rows) if self.is_scaled else self.totals
        for row in range(x.rows):
            total = reduce(lambda high, low: b.add(b.shl(high, 7), low), parts[row])
            sums[row] = b.fma(b.to_f32(total), scale, sums[row])
            if offset is not None:
                sums[row] = b.fma(b.neg(offset), b.to_f32(x.less(at, fmt.group, row)), sums[row])
        if self.is_scaled:
            self.blocks[at // x.block] = sums

    def count(self, element: int) -> None:
        """Four elements are done; perhaps a block is."""
        block = element // self.x.block
        self.left[block] -= 1
        if self.is_scaled and not self.left[block]:
            self.totals = self.x.scaled(element, self.blocks.pop(block), self.totals)


def _bits(unit: Unit) -> int:
    """Of the unsigned bytes that weights become."""
    packed = unit.format.quants
    assert packed is not None
    low = unit.format[packed.low]
    return 8 if packed.table else low.bits + (unit.format[packed.high].bits if packed.high else 0)


def emit_packed(
    module: ir.Module, target: Target, name: str, spec: Linear, tile: int, bits: int, block: int
) -> ir.Function:
    """As `linear.emit_linear`, with x in tiles of `tile` rows of integers of `bits`, `block` of which share a scale."""
    signature = ir.FunctionType(VOID, [PTR] * (len(spec.operands) + 2) + [I64] * 3)
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    emitter = PackedProducts(b, spec, function.args, tile, bits, block)
    if spec.experts:
        emitter.expert_rows()
    else:
        emitter.all_rows()
    b.ir.ret_void()
    return function


class PackedProducts(Products):
    def __init__(self, b: Build, spec: Linear, args: tuple[Value, ...], tile: int, bits: int, block: int):
        super().__init__(b, spec, args)
        self.tile = tile
        self.planes = Planes(b, spec.inputs, tile, bits, block)

    def all_rows(self) -> None:
        b = self.b
        tiles = quotient_up(b, self.rows, b.i64(self.tile))
        weights = [self.pointer[w] for w in self.weights]

        def column(n: Value, _: list[Value]) -> None:
            def rows(t: Value, _: list[Value]) -> None:
                start = b.mul(t, self.tile)
                count = smaller(b, b.sub(self.rows, start), b.i64(self.tile))
                x = self.planes.tile(self.pointer[self.x], t)
                self.one(n, x, weights, count, lambda r: b.add(start, r))

            b.loop(0, tiles, 1, [], rows)

        first, last = split(b, b.i64(self.spec.outputs // TILE), self.tid, self.threads)
        b.loop(first, last, 1, [], column)

    def expert_rows(self) -> None:
        """Every (token, expert) pair in turn; threads share the output columns of each."""
        b, spec = self.b, self.spec
        first, last = split(b, b.i64(spec.outputs // TILE), self.tid, self.threads)

        def pair(index: Value, _: list[Value]) -> None:
            x = self.planes.tile(self.pointer[self.x], self.input_row(index))
            weights = self.weights_of(self.expert(index))
            b.loop(first, last, 1, [], lambda n, _: self.one(n, x, weights, b.i64(1), lambda _: index))

        b.loop(0, b.mul(self.rows, spec.experts), 1, [], pair)

    def weights_of(self, expert: Value) -> list[Value]:
        return [self.b.at(self.pointer[w], self.b.mul(expert, self.operand[w].expert_bytes)) for w in self.weights]

    def one(self, n: Value, x: Value, weights: list[Value], count: Value, result_row: Callable[[Value], Value]) -> None:
        """A tile of weight rows by the first `count` rows of a tile of activations, and what follows on their results,
        which are written to the rows that `result_row` tells."""
        b, spec = self.b, self.spec
        found: dict[Node, Value] = {}
        for at, (product, w, pointer) in enumerate(zip(spec.products, self.weights, weights, strict=True)):
            how = packing(self.operand[w].format, spec.inputs)
            inner = emit_inner(b.module, b.target, how, self.tile, self.planes.bits, self.planes.block)
            found[product] = b.scratch(ir.ArrayType(F32, TILE * self.tile), "sums", at)
            units = b.i64(spec.inputs // how.elements)
            tile = b.at(pointer, b.mul(n, TILE * self.operand[w].row_bytes))
            b.ir.call(inner, [tile, units, x, b.i64(spec.inputs), found[product]])
        column = b.mul(n, TILE)

        def row(r: Value, _: list[Value]) -> None:
            at = result_row(r)
            sums = {p: b.load(buffer, b.vec(F32, TILE), b.mul(r, LINE), align=LINE) for p, buffer in found.items()}
            out = b.at(self.out, b.mul(at, 4 * spec.outputs))
            self.store(self.epilogue(sums, at, column, TILE), out, column)

        b.loop(0, count, 1, [], row)
