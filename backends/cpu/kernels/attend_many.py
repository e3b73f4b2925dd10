"""Attention of runs of rows of one sequence: queries lie in the lanes of vectors.

A thread works on an *item*: some rows of a run and all query heads of a group, up to `QUERIES` queries that share
every tile of K and V. The tile is converted to f32 once; then both products are outer products of vectors of queries
with single elements of K and V, and softmax needs no sum along lanes. The state lies in the thread's scratch, where
n is the number of queries an item has at most:

    q      [key size][n]       turned over, times the scale
    out    [value size][n]     weighted sum of V so far
    scores [TILE][n]           of this tile; later their exponentials
    tile   [TILE][row]         of K, later of V, as f32
    peak, total, fade [1][n]   maximum and sum so far; factor that brings `out` to a new maximum
    first, last [1][n]         visible positions, i32
    source, target [n]         addresses of a query, and of its result

Where there are fewer queries, the last one fills up the vectors, and is computed and stored several times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from llvmlite import ir

from ..build import F32, I32, PTR, Target, Value
from ..math import exp, softcap
from . import larger, quotient_up, smaller
from .attend import (
    LOWEST,
    TILE,
    Array,
    Attend,
    Kernel,
    Row,
    arrays,
    declare,
    padded,
    transposed,
    weight,
)

QUERIES = 64


def most_rows(spec: Attend) -> int:
    """Rows of an item."""
    return max(1, QUERIES // spec.share)


def layout(spec: Attend) -> tuple[dict[str, Array], int]:
    n = padded(most_rows(spec) * spec.share)
    sizes = {"q": (spec.key_size, 4 * n), "out": (spec.value_size, 4 * n), "scores": (TILE, 4 * n)}
    sizes["tile"] = (TILE, 4 * padded(max(spec.key_size, spec.value_size)))
    sizes |= {name: (1, 4 * n) for name in ("peak", "total", "fade", "first", "last")}
    return arrays(sizes | {"source": (n, 8), "target": (n, 8)})


def emit_attend_many(module: ir.Module, target: Target, name: str, spec: Attend) -> ir.Function:
    """The function that `attend.declare` describes, for rows that have a neighbour of the same sequence."""
    function, b = declare(module, target, name)
    _Many(b, spec, function.args, layout(spec)[0]).run()
    b.ir.ret_void()
    return function


class _Many(Kernel):
    # Rows of K, or columns of V, that are multiplied at once with one or two vectors of queries.
    @cached_property
    def most(self) -> int:
        return 8 if self.b.target.registers == 32 else 4

    def run(self) -> None:
        """Items are dealt out there and back again, because later rows see more positions."""
        b, spec = self.b, self.spec
        # A few items a thread at least, if there are so many rows.
        fair = b.ir.udiv(b.mul(self.rows, spec.groups), b.mul(self.threads, 4))
        size = larger(b, smaller(b, fair, b.i64(most_rows(spec))), b.i64(1))

        def row(r: Value, carried: list[Value]) -> list[Value]:
            start, items, run = carried  # of the item; dealt out so far; where the run of its sequence begins
            begins, ends = self.borders(r)
            run = b.ir.select(begins, r, run)
            count = b.sub(b.add(r, 1), start)
            alone = b.ir.and_(ends, b.ir.icmp_signed("==", run, r))
            full = b.ir.or_(ends, b.ir.icmp_signed("==", count, size))
            wanted = b.ir.and_(full, b.ir.not_(alone))
            with b.ir.if_then(wanted):
                b.loop(0, spec.groups, 1, [], lambda g, _: self.dealt(b.add(items, g), start, count, g))
            dealt = b.ir.select(wanted, b.add(items, spec.groups), items)
            return [b.ir.select(full, b.add(r, 1), start), dealt, run]

        b.loop(0, self.rows, 1, [b.i64(0)] * 3, row)

    def dealt(self, index: Value, start: Value, count: Value, group: Value) -> None:
        b = self.b
        turn, place = b.ir.udiv(index, self.threads), b.ir.urem(index, self.threads)
        back = b.ir.icmp_unsigned("!=", b.bit_and(turn, 1), b.i64(0))
        mine = b.ir.select(back, b.sub(b.sub(self.threads, 1), place), place)
        with b.ir.if_then(b.ir.icmp_signed("==", mine, self.tid)):
            self.item(start, count, group)

    def item(self, start: Value, count: Value, group: Value) -> None:
        b = self.b
        vectors = quotient_up(b, b.mul(count, self.spec.share), b.i64(b.lanes))
        low, full_low, full_high, high = self.gather(start, count, group, vectors)
        keys, values = self.cache(start, group)

        def tile(p: Value, place: Value, count: Value) -> None:
            self.convert(self.keys, keys, place, count)
            self.score(count, vectors)
            end = b.add(p, b.sub(count, 1))
            inside = b.ir.and_(b.ir.icmp_signed(">=", p, full_low), b.ir.icmp_signed("<=", end, full_high))
            with b.ir.if_else(inside) as (all_seen, border):
                for branch, masked in ((all_seen, False), (border, True)):
                    with branch:
                        b.loop(0, vectors, 1, [], lambda w, _, m=masked: self.soften(w, p, count, m))
            self.convert(self.values, values, place, count)
            self.accumulate(count, vectors)

        self.tiles(low, b.add(high, 1), tile)
        b.loop(0, vectors, 1, [], lambda w, _: self.finish(w))

    # -- an item's beginning and end --

    def gather(self, start: Value, count: Value, group: Value, vectors: Value) -> list[Value]:
        """Turns q over and starts every query. Gives the first position seen, those from and to which every query
        sees all, and the last one seen."""
        b, spec = self.b, self.spec
        n = b.mul(count, spec.share)
        head = b.mul(group, spec.share)

        def query(i: Value, seen: list[Value]) -> list[Value]:
            real = smaller(b, i, b.sub(n, 1))
            row = b.add(start, b.ir.udiv(real, b.i64(spec.share)))
            h = b.add(head, b.ir.urem(real, b.i64(spec.share)))
            given = b.add(b.mul(row, 4 * spec.q_stride), b.mul(h, 4 * spec.key_size))
            wanted = b.mul(b.add(b.mul(row, spec.heads), h), 4 * spec.value_size)
            b.store(b.at(self.q, given), self.place("source", i), align=8)
            b.store(b.at(self.out, wanted), self.place("target", i), align=8)
            first, last = self.sight(row)
            for name, value in (("first", first), ("last", last)):
                b.store(b.ir.trunc(value, I32), b.at(self.place(name, b.i64(0)), b.mul(i, 4)), align=4)
            lows, highs = [smaller(b, seen[0], first), larger(b, seen[1], first)], [smaller(b, seen[2], last)]
            return [*lows, *highs, larger(b, seen[3], last)]

        most = b.i64((1 << 63) - 1)
        seen = b.loop(0, b.mul(vectors, b.lanes), 1, [most, b.i64(-1), most, b.i64(-1)], query)

        def vector(w: Value, _: list[Value]) -> None:
            row = Row(b, "f32", spec.key_size)
            sources = self.addresses("source", w)

            def turn(d: int | Value, partial: bool, size: int) -> None:
                columns = transposed(b, [row.load(source, d, partial) for source in sources])
                for j, column in enumerate(columns[:size]):
                    at = b.add(b.mul(d, b.lanes) if isinstance(d, ir.Value) else b.i64(d * b.lanes), j)
                    b.store(b.mul(column, spec.scale), self.lanes_of("q", at, w))

            row.each(lambda d, partial: turn(d, partial, row.tail if partial else b.lanes))
            b.loop(0, spec.value_size, 1, [], lambda e, _: b.store(b.zeros(), self.lanes_of("out", e, w)))
            b.store(b.splat(LOWEST), self.lanes_of("peak", b.i64(0), w))
            b.store(b.zeros(), self.lanes_of("total", b.i64(0), w))

        b.loop(0, vectors, 1, [], vector)
        return seen

    def finish(self, w: Value) -> None:
        """out / total, turned over, to where it belongs."""
        b, row = self.b, Row(self.b, "f32", self.spec.value_size)
        targets = self.addresses("target", w)
        total = b.load(self.lanes_of("total", b.i64(0), w), b.vec(F32))

        def turn(e: int | Value, partial: bool) -> None:
            start = b.mul(e, b.lanes) if isinstance(e, ir.Value) else b.i64(e * b.lanes)
            size = row.tail if partial else b.lanes
            columns = [b.load(self.lanes_of("out", b.add(start, j), w), b.vec(F32)) for j in range(size)]
            columns += [b.zeros()] * (b.lanes - size)
            for vector, target in zip(transposed(b, [b.div(c, total) for c in columns]), targets, strict=True):
                row.store(vector, target, e, partial)

        row.each(turn)

    # -- a tile --

    def convert(self, row: Row, ring: Value, place: Value, count: Value) -> None:
        """Positions of K or V to f32."""
        b = self.b
        first = b.at(ring, b.mul(place, row.stride))

        def position(j: Value, _: list[Value]) -> None:
            source, to = b.at(first, b.mul(j, row.stride)), self.place("tile", j)
            row.each(lambda d, partial: row.store(row.load(source, d, partial), to, d))

        b.loop(0, count, 1, [], position)

    def score(self, count: Value, vectors: Value) -> None:
        """scores = K q^T of a tile. What is beyond `count`, up to whole blocks, is of no meaning."""
        b, most, stride = self.b, self.most, self.places["tile"].stride

        def block(j: Value, _: list[Value]) -> None:
            keys = self.place("tile", j)

            def products(w: Value, width: int) -> None:
                def add(d: Value, sums: list[Value]) -> list[Value]:
                    xs = self.side_by_side("q", d, w, width)
                    element = b.at(keys, b.mul(d, 4))
                    return self.outer(sums, [b.load(element, F32, m * stride, align=4) for m in range(most)], xs)

                sums = b.loop(0, self.spec.key_size, 1, [b.zeros()] * (most * width), add)
                for m in range(most):
                    self.store("scores", b.add(j, m), w, sums[m * width : (m + 1) * width])

            self.by_vectors(vectors, products)

        b.loop(0, count, most, [], block)

    def soften(self, w: Value, p: Value, count: Value, masked: bool) -> None:
        """A vector of queries: scores of a tile that starts at position p become exponentials, relative to the new
        maximum."""
        b, spec = self.b, self.spec
        zero, floats = b.i64(0), b.vec(F32)
        first, last = (b.load(self.lanes_of(name, zero, w), b.vec(I32)) for name in ("first", "last"))
        before = b.load(self.lanes_of("peak", zero, w), floats)

        def most(j: Value, carried: list[Value]) -> list[Value]:
            at = self.lanes_of("scores", j, w)
            s = b.load(at, floats)
            if spec.softcap is not None:
                s = softcap(b, s, spec.softcap)
            if masked:
                position = b.splat(b.ir.trunc(b.add(p, j), I32))
                seen = b.ir.and_(b.ir.icmp_signed(">=", position, first), b.ir.icmp_signed("<=", position, last))
                s = b.ir.select(seen, s, b.splat(float("-inf")))
            if masked or spec.softcap is not None:
                b.store(s, at)
            return [b.max(s, carried[0])]

        (peak,) = b.loop(0, count, 1, [before], most)
        fade = exp(b, b.sub(before, peak))

        def power(j: Value, carried: list[Value]) -> list[Value]:
            at = self.lanes_of("scores", j, w)
            e = weight(b, b.sub(b.load(at, floats), peak))
            b.store(e, at)
            return [b.add(carried[0], e)]

        (total,) = b.loop(0, count, 1, [b.zeros()], power)
        total = b.fma(b.load(self.lanes_of("total", zero, w), floats), fade, total)
        for name, value in (("peak", peak), ("fade", fade), ("total", total)):
            b.store(value, self.lanes_of(name, zero, w))

    def accumulate(self, count: Value, vectors: Value) -> None:
        """out = out * fade + V^T exponentials, as many columns at a time as stay in registers."""
        b = self.b

        def columns(e: Value, n: int) -> None:
            values = b.at(self.place("tile", b.i64(0)), b.mul(e, 4))

            def products(w: Value, width: int) -> None:
                def add(j: Value, sums: list[Value]) -> list[Value]:
                    xs = self.side_by_side("scores", j, w, width)
                    row = b.at(values, b.mul(j, self.places["tile"].stride))
                    return self.outer(sums, [b.load(row, F32, 4 * m, align=4) for m in range(n)], xs)

                # The tile is summed by itself: fewer roundings than adding each position to the whole.
                tile = b.loop(0, count, 1, [b.zeros()] * (n * width), add)
                fades = self.side_by_side("fade", b.i64(0), w, width)
                for m in range(n):
                    old = self.side_by_side("out", b.add(e, m), w, width)
                    new = tile[m * width : (m + 1) * width]
                    self.store("out", b.add(e, m), w, [b.fma(*ofn) for ofn in zip(old, fades, new, strict=True)])

            self.by_vectors(vectors, products)

        whole = self.spec.value_size // self.most * self.most
        b.loop(0, whole, self.most, [], lambda e, _: columns(e, self.most))
        if whole < self.spec.value_size:
            columns(b.i64(whole), self.spec.value_size - whole)

    # -- helpers --

    def outer(self, sums: Sequence[Value], numbers: Sequence[Value], vectors: Sequence[Value]) -> list[Value]:
        """sums [numbers][vectors] + each number times each vector."""
        b, width = self.b, len(vectors)
        alike = [b.splat(number) for number in numbers]
        return [b.fma(alike[i // width], vectors[i % width], total) for i, total in enumerate(sums)]

    def by_vectors(self, vectors: Value, emit: Callable[[Value, int], None]) -> None:
        """`emit(first, width)` for all vectors of queries, by twos as far as possible."""
        b = self.b
        even = b.bit_and(vectors, -2)
        b.loop(0, even, 2, [], lambda w, _: emit(w, 2))
        with b.ir.if_then(b.ir.icmp_signed("<", even, vectors)):
            emit(even, 1)

    def lanes_of(self, name: str, row: Value, w: Value) -> Value:
        """Where vector number w of a row of an array lies."""
        return self.b.at(self.place(name, row), self.b.mul(w, 4 * self.b.lanes))

    def side_by_side(self, name: str, row: Value, w: Value, width: int) -> list[Value]:
        at = self.lanes_of(name, row, w)
        return [self.b.load(at, self.b.vec(F32), 4 * self.b.lanes * i) for i in range(width)]

    def store(self, name: str, row: Value, w: Value, vectors: Sequence[Value]) -> None:
        at = self.lanes_of(name, row, w)
        for i, vector in enumerate(vectors):
            self.b.store(vector, at, 4 * self.b.lanes * i)

    def addresses(self, name: str, w: Value) -> list[Value]:
        """The pointers of a vector of queries."""
        b = self.b
        first = self.place(name, b.mul(w, b.lanes))
        return [b.load(first, PTR, 8 * i, align=8) for i in range(b.lanes)]
