"""One row's attention over planes of codes, in f32: 16 positions lie in the lanes of vectors.

What a group's bytes unfold to serves several heads at once. A scale belongs to a position, so K's is multiplied with
the scores, and V's with the exponentials, for each block of dimensions anew.
"""

from __future__ import annotations

from ..build import F32, Build, Value
from ..coded import GROUP, UNIT
from . import quotient_up
from .attend import Attend
from .attend_parts import State
from .attend_plain import Coming, Side, Span, reduce_four
from .codes import Codes


class Coded(Side):
    """K or V in codes."""

    def __init__(self, b: Build, spec: Attend, own: State, codes: Codes, capacity: Value):
        super().__init__(b, spec, own)
        self.codes, self.capacity = codes, capacity

    def coming(self, ring: Value, place: Value) -> Coming:
        return Coming(self.codes.at(ring, place), self.codes.layout.group_bytes // GROUP)

    def groups(self, span: Span) -> tuple[Value, Value]:
        """The first group of a tile that has positions of it, and the last one (exclusive)."""
        b = self.b
        return b.shr(span.first, 4), quotient_up(b, span.stop, b.i64(GROUP))

    @property
    def wide_sums(self) -> int:
        """Vectors of 16 lanes that are summed up in registers."""
        return max(1, self.sums * self.b.lanes // GROUP)


class CodedKeys(Coded):
    """first: codes are those of V, whose dimensions from there on are keys and add to the scores."""

    def __init__(self, b: Build, spec: Attend, own: State, codes: Codes, capacity: Value, first: int = 0):
        super().__init__(b, spec, own, codes, capacity)
        self.first, rest = divmod(first, codes.layout.width)  # in blocks
        assert not rest

    def begin(self, query: Value, which: Value) -> None:
        """Takes the queries of the heads of a group, f32 [share][query size]; `which` is its number in all rows."""
        self.query = query

    def score(self, ring: Value, span: Span, coming: Coming | None) -> None:
        """scores = q K^T of whole groups."""
        b, layout = self.b, self.codes.layout
        codes, scales = self.codes.at(ring, span.place), self.codes.scales(ring, self.capacity, span.place)

        def group(g: Value, _: list[Value]) -> None:
            here = b.at(codes, b.mul(g, layout.group_bytes)), b.at(scales, b.mul(g, layout.scale_bytes))
            for first, n in self.blocks(min(8, self.wide_sums)):
                self.products(first, n, *here, g, coming if first == 0 else None)

        b.loop(*self.groups(span), 1, [], group)

    def products(self, first: int, n: int, group: Value, scales: Value, g: Value, coming: Coming | None) -> None:
        """The scores of n heads and a group."""
        b, codes, size = self.b, self.codes, self.spec.query_size
        asked = codes.turns * (codes.layout.blocks - self.first)
        apart = max(1, min(UNIT, self.wide_sums // (2 * n)))  # sums of a head: a product waits for the one before it

        def block(k: Value, totals: list[Value]) -> list[Value]:
            def turn(t: Value, sums: list[Value]) -> list[Value]:
                index = b.add(b.mul(k, codes.turns), t)
                if coming is not None:
                    coming.ask(b, b.mul(g, GROUP), GROUP, b.sub(index, self.first * codes.turns), asked)
                units, sums = codes.of_turn(group, index), list(sums)
                at = b.at(self.query, b.mul(index, 4 * UNIT * codes.turn))
                for u in range(codes.turn):
                    for i, value in enumerate(units.floats(u)):
                        for h in range(n):
                            x = b.load(at, F32, 4 * ((first + h) * size + UNIT * u + i), align=4)
                            place = h * apart + i % apart
                            sums[place] = b.fma(value, b.splat(x, GROUP), sums[place])
                return sums

            sums = b.loop(0, codes.turns, 1, [b.zeros(GROUP)] * (n * apart), turn)
            scale = codes.scale(scales, k)
            for h in range(n):
                total = sums[h * apart]
                for other in sums[h * apart + 1 : (h + 1) * apart]:
                    total = b.add(total, other)
                totals[h] = b.fma(total, scale, totals[h])
            return totals

        totals = b.loop(self.first, codes.layout.blocks, 1, [b.zeros(GROUP)] * n, block)
        for h, total in enumerate(totals):
            self.put(first + h, b.mul(g, 4 * GROUP), b.mul(total, self.spec.scale), self.first)


class CodedValues(Coded):
    def accumulate(self, ring: Value, span: Span, coming: Coming) -> None:
        """out = out * fade + exponentials V, the four dimensions of a unit at a time."""
        b, codes, layout = self.b, self.codes, self.codes.layout
        here, scales = codes.at(ring, span.place), codes.scales(ring, self.capacity, span.place)

        def block(k: Value, _: list[Value]) -> None:
            self.weigh(scales, k, span)

            def turn(t: Value, _: list[Value]) -> None:
                index = b.add(b.mul(k, codes.turns), t)
                coming.ask(b, b.i64(0), self.spec.tile, index, codes.turns * layout.blocks)
                for u in range(codes.turn):
                    for first, n in self.blocks(max(1, self.wide_sums // UNIT)):
                        self.unit(here, index, u, first, n, span)

            b.loop(0, codes.turns, 1, [], turn)

        b.loop(0, layout.blocks, 1, [], block)

    def weigh(self, scales: Value, block: Value, span: Span) -> None:
        """weights = exponentials times the block's scales, which may be anything where nobody sees them."""
        b = self.b

        def group(g: Value, _: list[Value]) -> None:
            scale = self.codes.scale(b.at(scales, b.mul(g, self.codes.layout.scale_bytes)), block)
            at = b.mul(g, 4 * GROUP)

            def head(h: Value, _: list[Value]) -> None:
                e = b.load(self.own.place("scores", h), b.vec(F32, GROUP), at)
                seen = b.ir.fcmp_unordered("!=", e, b.zeros(GROUP))
                b.store(b.ir.select(seen, b.mul(e, scale), b.zeros(GROUP)), self.own.place("weights", h), at)

            b.loop(0, self.spec.share, 1, [], head)

        b.loop(*self.groups(span), 1, [], group)

    def unit(self, codes: Value, turn: Value, unit: int, first: int, n: int, span: Span) -> None:
        """A unit of n heads: positions are summed up in lanes, and these at the end of the tile."""
        b = self.b
        weights = [self.own.place("weights", b.i64(first + h)) for h in range(n)]

        def group(g: Value, sums: list[Value]) -> list[Value]:
            here = b.at(codes, b.mul(g, self.codes.layout.group_bytes))
            values = self.codes.of_turn(here, turn).floats(unit)
            ps = [b.load(w, b.vec(F32, GROUP), b.mul(g, 4 * GROUP)) for w in weights]
            return [b.fma(ps[i // UNIT], values[i % UNIT], total) for i, total in enumerate(sums)]

        sums = b.loop(*self.groups(span), 1, [b.zeros(GROUP)] * (UNIT * n), group)
        for h in range(n):
            four = reduce_four(b, sums[UNIT * h : UNIT * (h + 1)])
            at = b.mul(b.add(b.mul(turn, self.codes.turn), unit), 4 * UNIT)
            out = b.at(self.own.place("out", b.i64(first + h)), at)
            b.store(b.fma(b.load(out, four.type), self.fade(first + h, UNIT), four), out)
