"""Panels: weights made into bytes once for many rows of activations, and the products of both.

A panel is a few tiles of 16 weight rows by a stretch of columns, small enough for the first cache. Taking weights
apart costs work of the very units that multiply, so it is done once and not once for each tile of activations. Two
tiles of weights share the loads of activations, which would be as many as there are products otherwise.

Bytes in a panel use all eight bits: 4-bit weights stand in the upper ones, and their scale is that much smaller. So the
bias to take off is 128 or nothing whatever the format, and sums can start from what the activations come with for it.

Sums of 8-bit activations are below 2^22 and start from the bits of 1.5 * 2^23 as a float. They then *are* floats,
larger by that number, and need no conversion; what it adds to a block is the same for all rows and is taken off at the
start. Sums are rounded as f32 rounds numbers of its size, which is little beside what rounding activations to 8 bits
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from llvmlite import ir

from briolette.compiler.tiles import TILE

from ..build import F32, I32, I64, PTR, VOID, Build, Target, Value
from ..packing import LINE, Packing
from ..quads import emit_dot4
from ..unit import Unit, bias_of
from .activations import FLOATING, FLOATING_BITS

WIDTH = 2  # tiles of weights
SPAN = 512  # columns, or a block of weights where that is more


@dataclass(frozen=True)
class Panel:
    """How a panel lies: group by group of columns scales, offsets if any, and bytes, those of both tiles in turn."""

    how: Packing
    bits: int  # of activations
    block: int  # of activations that share a scale

    @property
    def name(self) -> str:
        return f"{self.how.blocks}.{self.how.format.name}.{self.bits}.{self.block}"

    @property
    def group(self) -> int:
        return self.how.format.group

    @property
    def has_offsets(self) -> bool:
        return self.how.format.offsets is not None

    @property
    def biased(self) -> bool:
        return bias_of(self.how.format) > 0

    @property
    def quads(self) -> int:
        """Where the bytes of a group begin."""
        return WIDTH * LINE * (2 if self.has_offsets else 1)

    @property
    def group_bytes(self) -> int:
        return self.quads + WIDTH * LINE * self.group // 4

    @property
    def least(self) -> int:
        """The fewest columns that are whole units and blocks."""
        return max(self.how.elements, self.block)

    @property
    def span(self) -> int:
        """The most columns."""
        return max(SPAN, self.least)

    @property
    def bytes(self) -> int:
        return self.span // self.group * self.group_bytes


def emit_unpack(module: ir.Module, target: Target, panel: Panel) -> ir.Function:
    """`void f(ptr weights, i64 turns, ptr to)`: weights from a unit's begin on into one tile of a panel."""
    how, fmt = panel.how, panel.how.format
    name = f"unpack.{panel.name}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, PTR]), name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    weights, turns, to = function.args
    count = how.elements // how.turns // fmt.elements  # blocks of weights in a turn
    groups = count * fmt.elements // fmt.group

    def turn(index: Value, _: list[Value]) -> None:
        here = b.at(weights, b.mul(b.ir.udiv(index, b.i64(how.turns)), how.bytes * TILE))
        unit = Unit(b, how, here, b.ir.urem(index, b.i64(how.turns)) if how.turns > 1 else None)
        out = b.at(to, b.mul(index, groups * panel.group_bytes))
        up = 8 - unit.bits
        for block in range(count):
            for group in range(fmt.elements // fmt.group):
                record = (block * fmt.elements // fmt.group + group) * panel.group_bytes
                b.store(b.mul(unit.scale(block, group), 0.5**up), out, record, align=LINE)
                offset = unit.offset(block, group)
                if offset is not None:
                    b.store(b.neg(offset), out, record + WIDTH * LINE, align=LINE)
            for span in how.spans:
                for element in span:
                    quad = b.shl(unit.weights(block, element), up)
                    group, at = divmod(block * fmt.elements + element, fmt.group)
                    place = group * panel.group_bytes + panel.quads + at // 4 * WIDTH * LINE
                    b.store(quad, out, place, align=LINE)

    b.loop(0, turns, 1, [], turn)
    b.ir.ret_void()
    return function


def emit_multiply(module: ir.Module, target: Target, panel: Panel, rows: int) -> ir.Function:
    """`void f(ptr panel, i64 blocks, ptr high, ptr low, ptr starts, ptr sums, ptr scales, ptr out)`: adds the products
    with a tile of activations to out, f32 [rows][WIDTH][16]. Activations are those of the panel's columns: their bytes
    (`high` of 16 bits only), and the sums of a group as `activations.Planes` keeps them."""
    name = f"multiply.{panel.name}.{rows}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, *[PTR] * 6]), name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    weights, blocks, high, low, starts, sums, scales, out = function.args
    group, groups = panel.group, panel.block // panel.group
    floating = panel.bits == 8
    tiles = range(WIDTH)

    def lanes(ptr: Value, ty: ir.Type, offset: int) -> Value:
        return b.broadcast(ptr, ty, offset, TILE)

    def vector(ptr: Value, ty: ir.Type, offset: int) -> Value:
        return b.load(ptr, b.vec(ty, TILE), offset, align=LINE)

    def quads(record: Value, x: Value, parts: list[list[Value]]) -> None:
        """Products of a group's bytes, added to the parts of each row and tile."""
        for word in range(group // 4):
            at = panel.quads + word * WIDTH * LINE
            w = [vector(record, I32, at + tile * LINE) for tile in tiles]
            for row in range(rows):
                four = lanes(x, I32, 4 * (word * rows + row))
                for tile in tiles:
                    parts[row][tile] = emit_dot4(b, parts[row][tile], w[tile], four, 8)

    def one_group(index: Value, before: list[Value]) -> list[Value]:
        """Adds a group's products to the sums of a block, row by row and tile by tile."""
        record = b.at(weights, b.mul(index, panel.group_bytes))
        place, plane = b.mul(index, 4 * rows), b.mul(index, group * rows)
        nothing = b.const(b.vec(I32, TILE), FLOATING_BITS if floating else 0)
        parts = [[nothing] * WIDTH for _ in range(rows)]
        if not floating:
            quads(record, b.at(high, plane), parts)
            parts = [[b.shl(part, 7) for part in of_row] for of_row in parts]
        if panel.biased:
            for row in range(rows):
                start = lanes(b.at(starts, place), I32, 4 * row)
                parts[row] = [start if floating else b.add(part, start) for part in parts[row]]
        quads(record, b.at(low, plane), parts)
        scale = [vector(record, F32, tile * LINE) for tile in tiles]
        after = []
        for row in range(rows):
            less = lanes(b.at(sums, place), F32, 4 * row) if panel.has_offsets else None
            for tile, part in enumerate(parts[row]):
                product = b.bits(part, b.vec(F32, TILE)) if floating else b.to_f32(part)
                total = b.fma(product, scale[tile], before[row * WIDTH + tile])
                if less is not None:
                    total = b.fma(less, vector(record, F32, (WIDTH + tile) * LINE), total)
                after.append(total)
        return after

    def one_block(index: Value, _: list[Value]) -> None:
        start = b.mul(index, groups)
        first = [b.zeros(TILE)] * WIDTH
        if floating:
            record = b.at(weights, b.mul(start, panel.group_bytes))
            for tile in tiles:
                scale = [vector(record, F32, at * panel.group_bytes + tile * LINE) for at in range(groups)]
                first[tile] = b.mul(reduce(b.add, scale), -FLOATING)
        found = b.loop(start, b.add(start, groups), 1, first * rows, one_group)
        for row in range(rows):
            of_row = lanes(b.at(scales, b.mul(index, 4 * rows)), F32, 4 * row)
            for tile in tiles:
                place = (row * WIDTH + tile) * LINE
                total = b.fma(found[row * WIDTH + tile], of_row, vector(out, F32, place))
                b.store(total, out, place, align=LINE)

    b.loop(0, blocks, 1, [], one_block)
    b.ir.ret_void()
    return function
