"""One row's attention over planes of codes, in integers: four products of bytes and their sum are one instruction.

Queries become signed digits of a byte, with a scale for each block of dimensions that share one in the plane; codes
become levels (`levels`). K: a lane is a position, and sums go over the dimensions. V: the weights of a tile, which are
exponentials times the scales of V, become digits with a scale; a lane is a dimension, and sums go over positions.

Numbers of several digits are multiplied digit by digit; of products with the same power of the radix there is one sum,
and those below the lowest power of the longer number are left out.

`attend_parts` has what lies in scratch.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..build import F32, I8, I32, I64, Build, Value
from ..coded import GROUP, LINE, UNIT
from ..math import ROUNDER, ROUNDER_BITS
from ..quads import emit_dot4
from . import smaller
from .attend import Attend
from .attend_codes import Coded
from .attend_parts import State
from .attend_plain import Coming, Span
from .codes import Codes
from .levels import LARGEST, RADIX, Across, Levels

# The largest weight, by its digits and whether it may be negative.
MOST = {(1, False): 255.0, (2, False): 65535.0, (1, True): 127.0, (2, True): float(LARGEST[2])}
SMALLEST = 1e-30  # what is below counts for nothing: its reciprocal might be no number


class Digits(Coded):
    """K or V in codes, and numbers of so many digits to multiply with."""

    def __init__(self, b: Build, spec: Attend, own: State, codes: Codes, capacity: Value, digits: int, signed: bool):
        super().__init__(b, spec, own, codes, capacity)
        self.levels, self.count = Levels(b, codes.layout, signed), digits

    @property
    def powers(self) -> int:
        """Sums of a product."""
        return max(self.count, self.levels.digits)

    def pairs(self) -> list[tuple[int, int]]:
        """Which digits, of numbers and of levels, are multiplied; their sum is the number of the sum."""
        return [(i, j) for i in range(self.count) for j in range(self.levels.digits) if i + j < self.powers]

    @property
    def power(self) -> float:
        """What the last of the sums stands for: the lowest digits of both count one."""
        return float(RADIX ** (self.count + self.levels.digits - 1 - self.powers))

    def together(self, sums: Sequence[Value]) -> Value:
        """The value of sums, the highest power first, f32."""
        b = self.b
        total = b.to_f32(sums[0])
        for other in sums[1:]:
            total = b.fma(total, b.const(total.type, float(RADIX)), b.to_f32(other))
        return total if self.power == 1.0 else b.mul(total, self.power)

    def whole(self, x: Value) -> Value:
        """f32 to the nearest whole numbers, i32; of small magnitude."""
        b = self.b
        rounded = b.bits(b.add(x, ROUNDER), b.vec(I32, x.type.count))
        return b.sub(rounded, ROUNDER_BITS)

    def step(self, most: Value, largest: float) -> tuple[Value, Value]:
        """The step of numbers up to `most` in magnitude, which become up to `largest`; and its reciprocal. Zeros where
        there are but zeros."""
        b = self.b
        some = b.ir.fcmp_unordered(">", most, b.f32(SMALLEST))
        inverse = b.ir.select(some, b.div(b.f32(largest), most), b.f32(0.0))
        return b.mul(most, 1.0 / largest), inverse

    def cut(self, x: Value, signed: bool) -> list[Value]:
        """i32 into digits, still i32: all signed, or none."""
        b = self.b
        if self.count == 1:
            return [x]
        if not signed:
            return [b.shr(x, 8), b.bit_and(x, 0xFF)]
        high = b.ir.ashr(b.add(x, 128), b.const(x.type, 8))
        return [high, b.sub(x, b.shl(high, 8))]


class IntegerKeys(Digits):
    def __init__(self, b: Build, spec: Attend, own: State, codes: Codes, capacity: Value):
        super().__init__(b, spec, own, codes, capacity, spec.query_bits // 8, False)

    def prepare(self) -> None:
        """Nobody's queries are in digits yet."""
        self.b.store(self.b.i64(-1), self.own.place("source", self.b.i64(0)), align=8)

    def begin(self, query: Value, which: Value) -> None:
        """Takes the queries of the heads of a group, f32 [share][key size], unless they are those of the part before;
        `which` is its number in all rows."""
        b, place = self.b, self.own.place("source", self.b.i64(0))
        with b.ir.if_then(b.ir.icmp_signed("!=", b.load(place, I64, align=8), which)):
            self.take(query)
            b.store(which, place, align=8)

    def take(self, query: Value) -> None:
        b, layout, size = self.b, self.codes.layout, self.spec.key_size
        lanes = min(GROUP, layout.width)
        floats = b.vec(F32, lanes)

        def head(h: Value, _: list[Value]) -> None:
            digits, taken, steps = (self.own.place(name, h) for name in ("digits", "taken", "steps"))
            values = b.at(query, b.mul(h, 4 * size))

            def block(k: Value, _: list[Value]) -> None:
                start = b.mul(k, layout.width)
                here, to = b.at(values, b.mul(start, 4)), b.at(digits, start)

                def most(i: Value, carried: list[Value]) -> list[Value]:
                    x = b.load(here, floats, b.mul(i, 4))
                    size = b.intrinsic("llvm.fabs", floats, [x], over=[floats])
                    return [b.max(size, carried[0]), b.add(b.mul(x, 0.0), carried[1])]

                found, nothing = b.loop(0, layout.width, lanes, [b.zeros(lanes)] * 2, most)
                step, inverse = self.step(b.reduce_max(found), LARGEST[self.count])
                step = b.add(step, b.reduce_add(nothing))  # NaN stays: bytes have none

                def put(i: Value, sums: list[Value]) -> list[Value]:
                    x = b.mul(b.load(here, floats, b.mul(i, 4)), b.splat(inverse, lanes))
                    parts = self.cut(self.whole(x), True)
                    for d, part in enumerate(parts):
                        b.store(b.ir.trunc(part, b.vec(I8, lanes)), to, b.add(i, d * size))
                    return [b.add(total, part) for total, part in zip(sums, parts, strict=True)]

                zero = b.const(b.vec(I32, lanes), 0)
                sums = b.loop(0, layout.width, lanes, [zero] * self.count, put)
                for d, total in enumerate(sums):
                    bias = b.mul(b.reduce_add(total), -self.levels.bias)
                    b.store(bias, taken, b.mul(b.add(k, d * layout.blocks), 4), align=4)
                b.store(b.mul(step, self.levels.step * self.spec.scale), steps, b.mul(k, 4), align=4)

            b.loop(0, layout.blocks, 1, [], block)

        b.loop(0, self.spec.share, 1, [], head)

    def score(self, ring: Value, span: Span, coming: Coming) -> None:
        """scores = q K^T of whole groups."""
        b, layout = self.b, self.codes.layout
        codes, scales = self.codes.at(ring, span.place), self.codes.scales(ring, self.capacity, span.place)
        low, stop = self.groups(span)
        blocks = self.blocks(max(1, min(8, self.wide_sums // self.powers)))
        together = max(1, min(4, self.wide_sums // (self.powers * blocks[0][1])))

        def groups(g: Value, _: list[Value]) -> None:
            last = b.sub(stop, 1)
            some = [smaller(b, b.add(g, i), last) for i in range(together)]
            here = [b.at(codes, b.mul(one, layout.group_bytes)) for one in some]
            theirs = [b.at(scales, b.mul(one, layout.scale_bytes)) for one in some]
            for first, n in blocks:
                self.products(first, n, here, theirs, some, coming if first == 0 else None)

        b.loop(low, stop, together, [], groups)

    def products(
        self, first: int, n: int, groups: list[Value], scales: list[Value], at: list[Value], coming: Coming | None
    ) -> None:
        """The scores of n heads and some groups, which are number `at` of the tile."""
        b, codes, layout, powers, size = self.b, self.codes, self.codes.layout, self.powers, self.spec.key_size
        own = [[self.own.place(name, b.i64(first + h)) for name in ("digits", "taken", "steps")] for h in range(n)]
        many = len(groups)

        def block(k: Value, totals: list[Value]) -> list[Value]:
            def turn(t: Value, sums: list[Value]) -> list[Value]:
                index, sums = b.add(b.mul(k, codes.turns), t), list(sums)
                if coming is not None:
                    coming.ask(b, b.mul(at[0], GROUP), GROUP * many, index, codes.turns * layout.blocks)
                units = [codes.of_turn(group, index) for group in groups]
                dims = b.mul(index, UNIT * codes.turn)
                for u in range(codes.turn):
                    levels = [self.levels.of(some, u) for some in units]
                    for h in range(n):
                        for i in range(self.count):
                            x = b.splat(b.load(own[h][0], I32, b.add(dims, UNIT * u + i * size), align=4), GROUP)
                            for j in range(self.levels.digits):
                                if i + j >= powers:
                                    continue
                                for g in range(many):
                                    place = (h * many + g) * powers + i + j
                                    sums[place] = emit_dot4(b, sums[place], levels[g][j], x, 8)
                return sums

            start = [self.start(own[h][1], k, p) for h in range(n) for _ in range(many) for p in range(powers)]
            sums = b.loop(0, codes.turns, 1, start, turn)
            for g in range(many):
                scale = codes.scale(scales[g], k)
                for h in range(n):
                    place = h * many + g
                    found = self.together(sums[place * powers : (place + 1) * powers])
                    step = b.splat(b.load(own[h][2], F32, b.mul(k, 4), align=4), GROUP)
                    totals[place] = b.fma(b.mul(found, step), scale, totals[place])
            return totals

        totals = b.loop(0, layout.blocks, 1, [b.zeros(GROUP)] * (n * many), block)
        for h in range(n):
            for g in range(many):
                b.store(totals[h * many + g], self.scores(first + h), b.mul(at[g], 4 * GROUP))

    def start(self, taken: Value, block: Value, power: int) -> Value:
        """Where a sum begins: without what the bias of levels is going to add to it."""
        b = self.b
        if power >= self.count:
            return b.const(b.vec(I32, GROUP), 0)
        at = b.mul(b.add(block, power * self.codes.layout.blocks), 4)
        return b.splat(b.load(taken, I32, at, align=4), GROUP)


class IntegerValues(Digits):
    def __init__(self, b: Build, spec: Attend, own: State, codes: Codes, capacity: Value):
        self.below = codes.layout.codec.signed  # whether weights may be negative
        super().__init__(b, spec, own, codes, capacity, spec.weight_bits // 8, not self.below)

    def accumulate(self, ring: Value, span: Span, coming: Coming) -> None:
        """out = out * fade + weights V, some units at a time."""
        b, codes, layout = self.b, self.codes, self.codes.layout
        here, scales = codes.at(ring, span.place), codes.scales(ring, self.capacity, span.place)
        blocks = self.blocks(max(1, min(8, self.wide_sums // self.powers)))
        chunk = max(1, min(4, codes.turn, self.wide_sums // (self.powers * blocks[0][1])))
        chunk = 1 << chunk.bit_length() - 1

        def block(k: Value, _: list[Value]) -> None:
            b.loop(0, self.spec.share, 1, [], lambda h, _: self.weigh(scales, k, h, span))

            def turn(t: Value, _: list[Value]) -> None:
                index = b.add(b.mul(k, codes.turns), t)
                coming.ask(b, b.i64(0), self.spec.tile, index, codes.turns * layout.blocks)
                for unit in range(0, codes.turn, chunk):
                    for first, n in blocks:
                        self.units(here, index, range(unit, unit + chunk), first, n, span)

            b.loop(0, codes.turns, 1, [], turn)

        b.loop(0, layout.blocks, 1, [], block)

    def weigh(self, scales: Value, block: Value, head: Value, span: Span) -> None:
        """A head's weights, exponentials times the block's scales, in digits. Scales may be anything where nobody sees
        them."""
        b, floats, ints = self.b, self.b.vec(F32, GROUP), self.b.vec(I32, GROUP)
        exponentials, weights, shares = (self.own.place(name, head) for name in ("scores", "weights", "shares"))

        def times(g: Value, carried: list[Value]) -> list[Value]:
            scale = self.codes.scale(b.at(scales, b.mul(g, self.codes.layout.scale_bytes)), block)
            at = b.mul(g, 4 * GROUP)
            e = b.load(exponentials, floats, at)
            seen = b.ir.fcmp_unordered("!=", e, b.zeros(GROUP))
            w = b.ir.select(seen, b.mul(e, scale), b.zeros(GROUP))
            b.store(w, weights, at)
            return [b.max(b.intrinsic("llvm.fabs", floats, [w], over=[floats]) if self.below else w, carried[0])]

        (found,) = b.loop(*self.groups(span), 1, [b.zeros(GROUP)], times)
        step, inverse = self.step(b.reduce_max(found), MOST[self.count, self.below])
        factor = b.splat(inverse, GROUP)

        def put(g: Value, sums: list[Value]) -> list[Value]:
            x = b.mul(b.load(weights, floats, b.mul(g, 4 * GROUP)), factor)
            parts = self.cut(self.whole(x), self.below)
            for d, part in enumerate(parts):
                fours = b.bits(b.ir.trunc(part, b.vec(I8, GROUP)), b.vec(I32, UNIT))
                lanes = b.shuffle(fours, [lane // UNIT for lane in range(GROUP)])
                b.store(lanes, shares, b.add(b.mul(g, LINE), d * 4 * self.spec.tile))
            return [b.add(total, part) for total, part in zip(sums, parts, strict=False)]

        counted = self.count if self.levels.bias else 0
        sums = b.loop(*self.groups(span), 1, [b.const(ints, 0)] * counted, put)
        for d, total in enumerate(sums):
            excess = b.mul(b.reduce_add(total), -self.levels.bias)
            b.store(excess, self.own.place("excess", head), 4 * d, align=4)
        b.store(b.mul(step, self.levels.step), self.own.place("portion", head), align=4)

    def units(self, codes: Value, turn: Value, units: range, first: int, n: int, span: Span) -> None:
        """Some units of n heads: positions are summed up in four lanes, and these at the end of the tile."""
        b, layout, powers, many = self.b, self.codes.layout, self.powers, len(units)
        ints, dims = b.vec(I32, GROUP), many * UNIT
        own = [{name: self.own.place(name, b.i64(first + h)) for name in ("shares", "out")} for h in range(n)]

        def group(g: Value, sums: list[Value]) -> list[Value]:
            here, sums = b.at(codes, b.mul(g, layout.group_bytes)), list(sums)
            found = Across(b, self.codes, self.codes.of_turn(here, turn).starts)
            levels = [self.levels.of(found, u) for u in units]
            for h in range(n):
                for i in range(self.count):
                    w = b.load(own[h]["shares"], ints, b.add(b.mul(g, LINE), i * 4 * self.spec.tile))
                    for j in range(self.levels.digits):
                        if i + j >= powers:
                            continue
                        for u in range(many):
                            place = (h * powers + i + j) * many + u
                            pair = (levels[u][j], w) if self.below else (w, levels[u][j])
                            sums[place] = emit_dot4(b, sums[place], *pair, 8)
            return sums

        sums = b.loop(*self.groups(span), 1, [b.const(ints, 0)] * (n * powers * many), group)
        for h in range(n):
            found = []
            for p in range(powers):
                start = (h * powers + p) * many
                total = added(b, sums[start : start + many])
                if self.levels.bias and p < self.count:
                    excess = b.load(self.own.place("excess", b.i64(first + h)), I32, 4 * p, align=4)
                    total = b.add(total, b.splat(excess, dims))
                found.append(total)
            at = b.mul(b.add(b.mul(turn, self.codes.turn), units.start), 4 * UNIT)
            out = b.at(own[h]["out"], at)
            portion = b.splat(b.load(self.own.place("portion", b.i64(first + h)), F32), dims)
            before = b.mul(b.load(out, b.vec(F32, dims)), self.fade(first + h, dims))
            b.store(b.fma(self.together(found), portion, before), out)


def added(b: Build, sums: Sequence[Value]) -> Value:
    """The four lanes of each dimension, in each of every four lanes one, added up: dimensions of units in order."""
    n = len(sums)
    if n == 1:
        (x,) = sums
        while x.type.count > UNIT:
            half = x.type.count // 2
            x = b.add(b.slice(x, 0, half), b.slice(x, half, half))
        return x
    pairs = [_halves(b, *sums[i : i + 2]) for i in range(0, n, 2)]
    if n == 2:
        (x,) = pairs
        return b.add(b.shuffle(x, [0, 1, 2, 3, 8, 9, 10, 11]), b.shuffle(x, [4, 5, 6, 7, 12, 13, 14, 15]))
    return _halves(b, *pairs)


def _halves(b: Build, x: Value, y: Value) -> Value:
    """Of each vector, fours of lanes added in pairs: (0 and 1, 2 and 3) of x, then those of y."""
    evens, odds = ([4 * four + lane for four in range(first, 8, 2) for lane in range(4)] for first in (0, 1))
    return b.add(b.shuffle(x, evens, y), b.shuffle(x, odds, y))
