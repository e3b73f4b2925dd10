"""Products of packed weights with activations of 8 or 16 bits: integers within 32 columns, f32 beyond.

One inner routine for each format and number of rows serves all sizes: 16 weight rows by a tile of activations.
A weight's bytes become a vector of unsigned bytes once and are multiplied with every row of the tile; what their bias
and the formats' offsets add is made good with the sums that come with the activations. Decoding is a tile of one row.

Activations lie in tiles, all rows of a tile side by side word by word:

    [K/4][rows] four int8 | [K/32][rows] f32 scale | [K/32][rows] f32 sum | [K/16][rows] f32 sum

where a sum is of the values, q times scale, in 32 or 16 columns. Activations of 16 bits are 128 a + b of two int8, and
the plane of b follows that of a.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce

from llvmlite import ir

from briolette.compiler.ir import Node
from briolette.compiler.opset.matrices import BLOCK, LEAST, LEVELS, TILE
from briolette.compiler.plan import quantised_bytes

from ..build import F32, I8, I32, I64, PTR, VOID, Build, Target, Value
from ..packing import LINE, Packing, Unit, emit_dot4, packing
from . import split
from .linear import Linear, Products

ROWS = 8  # rows of activations multiplied at a time: more are no faster, and make more code


@dataclass(frozen=True)
class Quantize:
    """Rows of `columns` floats, `stride` floats apart, into tiles of `tile` rows of integers of `bits`."""

    columns: int
    stride: int
    tile: int
    bits: int


def emit_quantize(module: ir.Module, target: Target, name: str, spec: Quantize) -> ir.Function:
    """`void f(ptr x, ptr out, i64 rows, i64 tid, i64 threads)`; rows beyond the last repeat it."""
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, I64, I64, I64]), name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    x, out, rows, tid, threads = function.args
    tile, blocks = spec.tile, spec.columns // BLOCK
    tiles = b.ir.udiv(b.add(rows, tile - 1), b.i64(tile))
    first, last = split(b, b.mul(tiles, blocks), tid, threads)
    planes = Planes(b, spec.columns, tile, spec.bits)

    def block(index: Value, _: list[Value]) -> None:
        t, k = b.ir.udiv(index, b.i64(blocks)), b.ir.urem(index, b.i64(blocks))
        to = planes.tile(out, t)

        def row(r: Value, _: list[Value]) -> None:
            wanted, end = b.add(b.mul(t, tile), r), b.sub(rows, 1)
            at = b.ir.select(b.ir.icmp_signed("<", wanted, end), wanted, end)
            source = b.at(x, b.mul(b.add(b.mul(at, spec.stride), b.mul(k, BLOCK)), 4))
            _quantize_block(b, source, planes.moved(to, r), planes, k)

        b.loop(0, tile, 1, [], row)

    b.loop(first, last, 1, [], block)
    b.ir.ret_void()
    return function


def _quantize_block(b: Build, source: Value, to: Value, planes: Planes, k: Value) -> None:
    """32 floats to where one row of a tile keeps its part of them."""
    values = [b.load(source, b.vec(F32, 16), 64 * i) for i in range(2)]
    sizes = [b.intrinsic("llvm.fabs", v.type, [v], over=[v.type]) for v in values]
    most = b.reduce_max(b.max(*sizes))
    scale = b.div(most, float(LEVELS[planes.bits]))
    some = b.ir.fcmp_ordered(">", scale, b.f32(LEAST))
    inverse = b.ir.select(some, b.div(b.f32(1.0), scale), b.f32(0.0))
    sums = []
    for half, v in enumerate(values):
        q = _rounded(b, b.mul(v, b.splat(inverse, 16)))
        sums.append(b.mul(b.reduce_add(q), scale))
        parts = [q]
        if planes.bits == 16:
            high = _rounded(b, b.mul(q, 1 / 128))
            parts = [high, b.sub(q, b.mul(high, 128.0))]
        for plane, part in enumerate(parts):
            narrow = b.ir.trunc(b.ir.fptosi(part, b.vec(I32, 16)), b.vec(I8, 16))
            words = b.bits(narrow, b.vec(I32, 4))
            for word in range(4):
                at = b.add(planes.word(b.add(b.mul(k, 8), 4 * half + word)), planes.integers(plane))
                b.store(b.ir.extract_element(words, b.i32(word)), to, at, align=4)
        b.store(sums[half], to, planes.small_sum(b.add(b.mul(k, 2), half)), align=4)
    b.store(scale, to, planes.scale(k), align=4)
    b.store(b.add(*sums), to, planes.sum(k), align=4)


def _rounded(b: Build, value: Value) -> Value:
    """The nearest integer, ties to even, of numbers below 2^22: adding and taking away 1.5 * 2^23 rounds."""
    return b.sub(b.add(value, 12582912.0), 12582912.0)


class Planes:
    """Where things lie in a tile of `rows` rows of `columns` activations of `bits`, in bytes."""

    def __init__(self, b: Build, columns: int | Value, rows: int, bits: int):
        self.b, self.columns, self.rows, self.bits = b, columns, rows, bits
        self.starts = [self.part(bits + plane) for plane in range(3)]  # of the scales, the sums, the small sums

    def integers(self, plane: int) -> int | Value:
        """Where the integers' first or second byte begins."""
        return self.part(8 * plane)

    def part(self, eighths: int) -> int | Value:
        """So many eighths of a byte for each activation of the tile."""
        if isinstance(self.columns, int):
            return self.rows * self.columns * eighths // 8
        return self.b.mul(self.b.ir.lshr(self.columns, self.b.i64(3)), self.rows * eighths)

    def tile(self, start: Value, index: Value) -> Value:
        assert isinstance(self.columns, int)
        return self.b.at(start, self.b.mul(index, self.rows * quantised_bytes(self.columns, self.bits)))

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


def emit_inner(module: ir.Module, target: Target, how: Packing, rows: int, bits: int) -> ir.Function:
    """`void f(ptr weights, i64 units, ptr x, i64 columns, ptr out)`: a tile of weights by a tile of activations.

    out: f32 [rows][16], aligned.
    """
    name = f"packed.{how.format.name}.{rows}.{bits}"
    found = module.globals.get(name)
    if found is not None:
        return found
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, PTR, I64, PTR]), name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    weights, units, x, columns, out = function.args
    planes = Planes(b, columns, rows, bits)
    scales, sums, small = (b.at(x, start) for start in planes.starts)
    bytes_of = [b.at(x, planes.integers(plane)) for plane in range(bits // 8)]
    turns = how.turns
    step = how.elements // turns

    def turn(index: Value, carried: list[Value]) -> list[Value]:
        whole = b.ir.udiv(index, b.i64(turns))
        here = b.at(weights, b.mul(whole, how.bytes * TILE))
        unit = Unit(b, how, here, b.ir.urem(index, b.i64(turns)) if turns > 1 else None)
        start = b.mul(index, step * rows)  # bytes of int8 before this
        blocks = b.ir.lshr(start, b.i64(3))  # bytes of a plane of scales: 4 a block of 32
        words = tuple(b.at(plane, start) for plane in bytes_of)
        lanes = Lanes(b, rows, words, b.at(scales, blocks), b.at(sums, blocks), b.at(small, b.shl(blocks, 1)))
        return _unit(b, unit, lanes, carried)

    totals = b.loop(0, b.mul(units, turns), 1, [b.zeros(TILE)] * rows, turn)
    for row, total in enumerate(totals):
        b.store(total, out, LINE * row, align=LINE)
    b.ir.ret_void()
    return function


@dataclass(frozen=True)
class Lanes:
    """The activations of a unit, or of a block of it, one number in all lanes at a time."""

    b: Build
    rows: int
    words: tuple[Value, ...]  # the integers, a byte each
    scales: Value
    sums: Value
    small: Value

    def word(self, plane: int, element: int, row: int) -> Value:
        """Four int8 from an element on."""
        return self.all_lanes(self.words[plane], I32, element * self.rows + 4 * row)

    def number(self, plane: Value, index: int, row: int) -> Value:
        return self.all_lanes(plane, F32, 4 * (index * self.rows + row))

    def all_lanes(self, ptr: Value, ty: ir.Type, offset: int) -> Value:
        return self.b.lane(self.b.load(ptr, self.b.vec(ty, 1), offset, align=4), 0, TILE)


def _unit(b: Build, unit: Unit, x: Lanes, totals: list[Value]) -> list[Value]:
    """The sums of all rows with a unit's products added."""
    fmt, bits = unit.format, _bits(unit)
    blocks = range(0, fmt.elements, BLOCK)
    # One row reads weights once, from memory: in their order. Many rows read them again and again; what counts for
    # them is how few sums are in the making at a time.
    spans = unit.how.spans if x.rows == 1 else [tuple(range(at, at + BLOCK, 4)) for at in blocks]
    for block in range(unit.how.blocks // unit.how.turns):
        for span in spans:
            left = Counter(element // fmt.group for element in span)
            sums: dict[int, list[list[Value]]] = {}
            for element in span:
                group = element // fmt.group
                quad = unit.weights(block, element)
                parts = sums.setdefault(group, [[b.const(quad.type, 0)] * len(x.words) for _ in range(x.rows)])
                # Rows side by side, because a product waits for the one before it of the same row.
                for plane in range(len(x.words)):
                    for row in range(x.rows):
                        word = x.word(plane, block * fmt.elements + element, row)
                        parts[row][plane] = emit_dot4(b, parts[row][plane], quad, word, bits)
                left[group] -= 1
                if not left[group]:
                    _add_group(b, unit, block, group, x, sums.pop(group), totals)
    return totals


def _add_group(
    b: Build, unit: Unit, block: int, group: int, x: Lanes, parts: list[list[Value]], totals: list[Value]
) -> None:
    """Adds the products of a group, by plane of the activations' bytes, to the sums of all rows."""
    fmt = unit.format
    element = block * fmt.elements + group * fmt.group
    scale, extra = unit.scale(block, group), _extra(b, unit, block, group)
    plane, width = (x.sums, BLOCK) if fmt.group == BLOCK else (x.small, fmt.group)
    for row in range(x.rows):
        total = reduce(lambda high, low: b.add(b.shl(high, 7), low), parts[row])
        product = b.mul(b.to_f32(total), x.number(x.scales, element // BLOCK, row))
        totals[row] = b.fma(product, scale, totals[row])
        if extra is not None:
            totals[row] = b.fma(extra, x.number(plane, element // width, row), totals[row])


def _bits(unit: Unit) -> int:
    """Of the unsigned bytes that weights become."""
    packed = unit.format.quants
    assert packed is not None
    low = unit.format[packed.low]
    return 8 if packed.table else low.bits + (unit.format[packed.high].bits if packed.high else 0)


def _extra(b: Build, unit: Unit, block: int, group: int) -> Value | None:
    """What a group adds for each unit of its activations' sum: its offset, and the bias of its bytes."""
    offset = unit.offset(block, group)
    if not unit.bias:
        return offset
    bias = b.mul(unit.scale(block, group), float(-unit.bias))
    return bias if offset is None else b.add(bias, offset)


def emit_packed(module: ir.Module, target: Target, name: str, spec: Linear, tile: int, bits: int) -> ir.Function:
    """As `linear.emit_linear`, with x in tiles of `tile` rows of integers of `bits`."""
    signature = ir.FunctionType(VOID, [PTR] * (len(spec.operands) + 2) + [I64] * 3)
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    emitter = _Packed(b, spec, function.args, tile, bits)
    if spec.experts:
        emitter.expert_rows()
    else:
        emitter.all_rows()
    b.ir.ret_void()
    return function


class _Packed(Products):
    def __init__(self, b: Build, spec: Linear, args: tuple[Value, ...], tile: int, bits: int):
        super().__init__(b, spec, args)
        self.tile = tile
        self.planes = Planes(b, spec.inputs, tile, bits)

    def all_rows(self) -> None:
        b = self.b
        tiles = b.ir.udiv(b.add(self.rows, self.tile - 1), b.i64(self.tile))
        weights = [self.pointer[w] for w in self.weights]

        def column(n: Value, _: list[Value]) -> None:
            def rows(t: Value, _: list[Value]) -> None:
                start = b.mul(t, self.tile)
                left = b.sub(self.rows, start)
                count = b.ir.select(b.ir.icmp_signed("<", left, b.i64(self.tile)), left, b.i64(self.tile))
                self.one(n, self.planes.tile(self.pointer[self.x], t), weights, start, count)

            b.loop(0, tiles, 1, [], rows)

        first, last = split(b, b.i64(self.spec.outputs // TILE), self.tid, self.threads)
        b.loop(first, last, 1, [], column)

    def expert_rows(self) -> None:
        """Every (token, expert) pair in turn; threads share the output columns of each."""
        b, spec = self.b, self.spec
        first, last = split(b, b.i64(spec.outputs // TILE), self.tid, self.threads)

        def pair(index: Value, _: list[Value]) -> None:
            row, expert = self.chosen(index)
            x = self.planes.tile(self.pointer[self.x], row)
            weights = [b.at(self.pointer[w], b.mul(expert, self.operand[w].expert_bytes)) for w in self.weights]
            b.loop(first, last, 1, [], lambda n, _: self.one(n, x, weights, index, b.i64(1)))

        b.loop(0, b.mul(self.rows, spec.experts), 1, [], pair)

    def one(self, n: Value, x: Value, weights: list[Value], start: Value, count: Value) -> None:
        """A tile of weight rows by a tile of activations, and what follows on their results."""
        b, spec = self.b, self.spec
        found: dict[Node, Value] = {}
        for at, (product, w, pointer) in enumerate(zip(spec.products, self.weights, weights, strict=True)):
            how = packing(self.operand[w].format)
            assert how is not None
            inner = emit_inner(b.module, b.target, how, self.tile, self.planes.bits)
            found[product] = b.scratch(ir.ArrayType(F32, TILE * self.tile), "sums", at)
            units = b.i64(spec.inputs // how.elements)
            tile = b.at(pointer, b.mul(n, TILE * self.operand[w].row_bytes))
            b.ir.call(inner, [tile, units, x, b.i64(spec.inputs), found[product]])
        column = b.mul(n, TILE)

        def row(r: Value, _: list[Value]) -> None:
            at = b.add(start, r)
            sums = {p: b.load(buffer, b.vec(F32, TILE), b.mul(r, LINE), align=LINE) for p, buffer in found.items()}
            out = b.at(self.out, b.mul(at, 4 * spec.outputs))
            self.store(self.epilogue(sums, at, column, TILE), out, column)

        b.loop(0, count, 1, [], row)
