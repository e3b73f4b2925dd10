"""Products of packed weights with activations of 8 or 16 bits: integers within 32 columns, f32 beyond.

One inner routine for each format and number of rows serves all sizes: 16 weight rows by a tile of activations.
A weight's bytes become a vector of unsigned bytes once and are multiplied with every row of the tile; what their bias
and the formats' offsets add is made good with the sums that come with the activations. Decoding is a tile of one row.

What is scarce is the multiplier, which integer and float products share; on some processors, conversions, shifts and
additions wait for it, too. So a group of weights costs its integer products and one float product with its scale
(another where it has an offset), and the activations' scale is applied once a block.

Many rows are multiplied by panels of weights made into bytes once, where the processor has the registers for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from llvmlite import ir

from briolette.compiler.ir import Node
from briolette.compiler.tiles import BLOCK, TILE

from ..build import F32, I8, I32, I64, PTR, VOID, Build, Target, Value
from ..packing import LINE, Packing, packing
from ..quads import emit_dot4
from ..unit import Unit
from . import quotient_up, smaller, split
from .activations import Planes
from .linear import Linear, Products
from .panel import WIDTH, Panel, emit_multiply, emit_unpack

ROWS = 8  # rows of activations multiplied at a time: with two tiles of weights, sums for half of the registers
FEW = 2  # the same of a small batch: weights come from memory as fast as for one row
TOGETHER = 32 * ROWS  # rows whose activations are multiplied with all weights before the next: most stay in L2


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
    group = how.format.group
    parts_of = [b.at(x, start) for start in (planes.scales, planes.sums(group), planes.starts(group))]
    bytes_of = [b.at(x, planes.integers(plane)) for plane in range(bits // 8)]
    step = how.elements // how.turns
    together = max(1, block // step)  # turns that share the activations' scale

    def lanes(index: Value) -> Lanes:
        """The activations of a turn."""
        before = b.mul(index, step * rows)  # elements
        words = tuple(b.at(plane, before) for plane in bytes_of)
        scales, sums, starts = (
            b.at(part, b.ir.lshr(before, b.i64((size // 4).bit_length() - 1)))
            for part, size in zip(parts_of, (block, group, group), strict=True)
        )
        return Lanes(b, rows, block, group, planes.base, words, scales, sums, starts)

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
    group: int
    base: int  # what starts are larger by
    words: tuple[Value, ...]  # the integers, a byte each
    scales: Value
    sums: Value
    starts: Value

    def word(self, plane: int, element: int, row: int) -> Value:
        """Four int8 from an element on."""
        return self.all_lanes(self.words[plane], I32, element * self.rows + 4 * row)

    def less(self, element: int, row: int) -> Value:
        """f32: the sum of a group of integers from an element on, negated."""
        return self.all_lanes(self.sums, F32, 4 * (element // self.group * self.rows + row))

    def start(self, element: int, bias: int, row: int) -> Value:
        """i32: the same times the weights' bias."""
        found = self.all_lanes(self.starts, I32, 4 * (element // self.group * self.rows + row))
        if self.base:
            found = self.b.sub(found, self.base)
        down = 8 - bias.bit_length()
        return self.b.ir.ashr(found, self.b.const(found.type, down)) if down else found

    def scaled(self, element: int, parts: list[Value], totals: list[Value]) -> list[Value]:
        """Totals of all rows with the sums of a block added."""
        at = 4 * (element // self.block) * self.rows
        scales = [self.all_lanes(self.scales, F32, at + 4 * row) for row in range(self.rows)]
        return [self.b.fma(*all_of) for all_of in zip(parts, scales, totals, strict=True)]

    def all_lanes(self, ptr: Value, ty: ir.Type, offset: int) -> Value:
        return self.b.broadcast(ptr, ty, offset, TILE)


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
                    parts[plane] = emit_dot4(self.b, parts[plane], quad, x.word(plane, at, row), self.unit.bits)
            left[group] -= 1
            if not left[group]:
                self.group(block, group, sums.pop(group))
            self.count(at)

    def start(self, element: int, row: int) -> list[Value]:
        """What the sums of a group begin with, by plane: what the weights' bias adds to them is taken off."""
        b, bias = self.b, self.unit.bias
        nothing = b.const(b.vec(I32, TILE), 0)
        first = self.x.start(element, bias, row) if bias else nothing
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
                sums[row] = b.fma(b.neg(offset), x.less(at, row), sums[row])
        if self.is_scaled:
            self.blocks[at // x.block] = sums

    def count(self, element: int) -> None:
        """Four elements are done; perhaps a block is."""
        block = element // self.x.block
        self.left[block] -= 1
        if self.is_scaled and not self.left[block]:
            self.totals = self.x.scaled(element, self.blocks.pop(block), self.totals)


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

    @property
    def wide(self) -> int:
        """Tiles of weights that are multiplied together with many rows."""
        return WIDTH if self.tile == ROWS and self.b.target.multiplies_panels else 1

    @property
    def strips(self) -> int:
        """How many strips of so many tiles there are; the last may have fewer."""
        return -(-self.spec.outputs // (TILE * self.wide))

    def all_rows(self) -> None:
        b = self.b
        first, last = split(b, b.i64(self.strips), self.tid, self.threads)
        weights = [self.pointer[w] for w in self.weights]

        def some(start: Value, _: list[Value]) -> None:
            x = self.planes.tile(self.pointer[self.x], b.ir.udiv(start, b.i64(self.tile)))
            count = smaller(b, b.sub(self.rows, start), b.i64(TOGETHER))
            b.loop(first, last, 1, [], lambda n, _: self.strip(n, x, weights, count, lambda r: b.add(start, r)))

        b.loop(0, self.rows, TOGETHER, [], some)

    def strip(
        self, n: Value, x: Value, weights: list[Value], count: Value, result_row: Callable[[Value], Value]
    ) -> None:
        """A strip of weights by `count` rows of activations, at most `TOGETHER`, in tiles from x on."""
        if self.wide > 1:
            self.panel(n, x, weights, count, result_row)
            return
        b = self.b

        def rows(start: Value, _: list[Value]) -> None:
            here = self.planes.tile(x, b.ir.udiv(start, b.i64(self.tile)))
            size = smaller(b, b.sub(count, start), b.i64(self.tile))
            self.one(n, here, weights, size, lambda r: result_row(b.add(start, r)))

        b.loop(0, count, self.tile, [], rows)

    def panel(
        self, n: Value, x: Value, weights: list[Value], count: Value, result_row: Callable[[Value], Value]
    ) -> None:
        """As `strip`, with weights made into bytes first."""
        b, spec = self.b, self.spec
        first, end = b.mul(n, WIDTH), b.i64(spec.outputs // TILE)
        found: dict[Node, Value] = {}
        for at, (product, w, pointer) in enumerate(zip(spec.products, self.weights, weights, strict=True)):
            found[product] = b.scratch(ir.ArrayType(F32, TOGETHER * WIDTH * TILE), "sums", at)
            b.clear(found[product], b.mul(quotient_up(b, count, b.i64(ROWS)), ROWS * WIDTH * LINE))
            tiles = []
            for side in range(WIDTH):  # where there is none left, the last once more
                tile = smaller(b, b.add(first, side), b.sub(end, 1))
                tiles.append(b.at(pointer, b.mul(tile, TILE * self.operand[w].row_bytes)))
            self.stretches(packing(self.operand[w].format, spec.inputs), tiles, x, count, found[product])

        def row(r: Value, _: list[Value]) -> None:
            at = result_row(r)
            out = b.at(self.out, b.mul(at, 4 * spec.outputs))

            def tile(index: Value, _: list[Value]) -> None:
                place = b.mul(b.add(b.mul(r, WIDTH), b.sub(index, first)), LINE)
                sums = {p: b.load(buffer, b.vec(F32, TILE), place, align=LINE) for p, buffer in found.items()}
                column = b.mul(index, TILE)
                self.store(self.epilogue(sums, at, column, TILE), out, column)

            b.loop(first, smaller(b, b.add(first, WIDTH), end), 1, [], tile)

        b.loop(0, count, 1, [], row)

    def stretches(self, how: Packing, tiles: list[Value], x: Value, count: Value, sums: Value) -> None:
        """Adds the products of tiles of weights to sums, a panel's columns at a time."""
        b, planes, inputs = self.b, self.planes, self.spec.inputs
        panel = Panel(how, planes.bits, planes.block)
        unpack = emit_unpack(b.module, b.target, panel)
        multiply = emit_multiply(b.module, b.target, panel, ROWS)
        room = b.scratch(ir.ArrayType(I8, panel.bytes), "panel")
        low = planes.integers(planes.bits // 8 - 1)

        # With few rows, bringing weights from memory takes as long as multiplying: in small steps, both go on at once.
        few = b.ir.icmp_signed("<=", count, b.i64(2 * ROWS))
        span = b.ir.select(few, b.i64(panel.least), b.i64(panel.span))

        def stretch(start: Value, _: list[Value]) -> None:
            columns = smaller(b, b.sub(b.i64(inputs), start), span)
            units, before = b.ir.udiv(columns, b.i64(how.elements)), b.ir.udiv(start, b.i64(how.elements))
            for side, tile in enumerate(tiles):
                weights = b.at(tile, b.mul(before, how.bytes * TILE))
                b.ir.call(unpack, [weights, b.mul(units, how.turns), b.at(room, side * LINE)])
            blocks = b.ir.udiv(columns, b.i64(planes.block))

            def rows(row: Value, _: list[Value]) -> None:
                here = planes.tile(x, b.ir.udiv(row, b.i64(ROWS)))
                of_group = b.mul(b.ir.udiv(start, b.i64(panel.group)), 4 * ROWS)
                of_block = b.mul(b.ir.udiv(start, b.i64(planes.block)), 4 * ROWS)
                parts = [b.at(b.at(here, plane), b.mul(start, ROWS)) for plane in (planes.integers(0), low)]
                parts += [b.at(b.at(here, plane(panel.group)), of_group) for plane in (planes.starts, planes.sums)]
                scales = b.at(b.at(here, planes.scales), of_block)
                b.ir.call(multiply, [room, blocks, *parts, scales, b.at(sums, b.mul(row, WIDTH * LINE))])

            b.loop(0, count, ROWS, [], rows)

        b.loop(0, inputs, span, [], stretch)

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
