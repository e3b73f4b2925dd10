"""Attention of runs of rows of one sequence: queries lie in the lanes of vectors.

A thread works on an *item*: some rows of a run and all query heads of a group, up to `QUERIES` queries that share
every tile of K and V. The tile is converted to f32 once; then both products are outer products of vectors of queries
with single elements of K and V, and softmax needs no sum along lanes. Where there are near planes, positions that some
rows of the item read there, and others in the main planes, are worked on twice, and each time seen by those rows only.

The state lies in the thread's scratch, where n is the number of queries an item has at most:

    q      [query size][n]     turned over, times the scale
    out    [value size][n]     weighted sum of V so far
    scores [TILE][n]           of this tile; later their exponentials
    tile   [TILE][row]         of K, later of V, as f32; out of codes [row][TILE]
    peak, total, fade [1][n]   maximum and sum so far; factor that brings `out` to a new maximum
    first, last [1][n]         visible positions, i32
    from, to [1][n]            of these the ones in the planes that are worked on
    source, target [n]         addresses of a query, and of its result

Where there are fewer queries, the last one fills up the vectors, and is computed and stored several times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from llvmlite import ir

from ..build import F32, I32, PTR, Build, Target, Value
from ..coded import GROUP, UNIT
from ..math import exp, softcap
from . import larger, quotient_up, smaller
from .attend import (
    LOWEST,
    TILE,
    Array,
    Attend,
    Kernel,
    Plane,
    Planes,
    Ring,
    Row,
    arrays,
    declare,
    padded,
    transposed,
    weight,
)
from .codes import Codes

QUERIES = 64
FAR = 1 << 30  # more than any number of positions


@dataclass(frozen=True)
class Seen:
    """Positions that an item's queries see: from the first to the last that any sees, and between those that all do."""

    low: Value
    full_low: Value
    full_high: Value
    high: Value


@dataclass(frozen=True)
class Sight:
    """The arrays of the first and last position that a query sees of some planes; and those that all queries see."""

    first: str
    last: str
    full_low: Value
    full_high: Value


@dataclass(frozen=True)
class Tile:
    """A tile as f32: where it begins, and bytes from one position, or one dimension, to the next."""

    b: Build
    start: Value
    position: int
    dim: int

    def at(self, position: Value, dim: Value) -> Value:
        return self.b.at(self.b.at(self.start, self.b.mul(position, self.position)), self.b.mul(dim, self.dim))


def most_rows(spec: Attend) -> int:
    """Rows of an item."""
    return max(1, QUERIES // spec.share)


def layout(spec: Attend) -> tuple[dict[str, Array], int]:
    n = padded(most_rows(spec) * spec.share)
    sizes = {"q": (spec.query_size, 4 * n), "out": (spec.value_size, 4 * n), "scores": (TILE, 4 * n)}
    # Where positions lie side by side, a vector of them may begin at any of the last row.
    sizes["tile"] = (TILE + 1, 4 * padded(max(spec.key_size, spec.value_size)))
    sizes |= {name: (1, 4 * n) for name in ("peak", "total", "fade", "first", "last", "from", "to")}
    return arrays(sizes | {"source": (n, 8), "target": (n, 8)})


def emit_attend_many(module: ir.Module, target: Target, name: str, spec: Attend) -> ir.Function:
    """The function that `attend.declare` describes, for rows that have a neighbour of the same sequence."""
    function, b = declare(module, target, name, spec)
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
        seen = self.gather(start, count, group, vectors)
        if self.spec.main:
            self.of_main(seen, vectors, self.rings(self.main, start, group))
        if self.spec.near:
            self.of_near(seen, vectors, self.rings(self.near, start, group))
        b.loop(0, vectors, 1, [], lambda w, _: self.finish(w))

    def of_main(self, seen: Seen, vectors: Value, rings: tuple[Value, Value]) -> None:
        b, spec = self.b, self.spec
        low, stop = self.main_stretch(seen.low, b.add(seen.high, 1), seen.high)
        sight = Sight("first", "last", seen.full_low, seen.full_high)
        if spec.near:
            self.bound(vectors, "to", lambda of: b.sub(of("last"), spec.recent))
            sight = Sight("first", "to", seen.full_low, b.sub(seen.full_high, spec.recent))
        self.tiles(low, stop, self.main_ring(), TILE, lambda *at: self.tile(self.main, rings, vectors, sight, *at))

    def of_near(self, seen: Seen, vectors: Value, rings: tuple[Value, Value]) -> None:
        b = self.b

        def kind(which: Value, low: Value, stop: Value, ring: Ring) -> None:
            """Of the sinks all that the window shows, of the rest the recent ones."""
            sinks = b.ir.icmp_signed("==", which, b.i64(0))
            before = b.ir.select(sinks, b.i64(FAR), b.i64(self.spec.recent - 1))
            narrow = b.splat(b.ir.trunc(before, I32))
            self.bound(vectors, "from", lambda of: larger(b, of("first"), b.sub(of("last"), narrow)))
            full_low = larger(b, seen.full_low, b.sub(seen.high, before))
            sight = Sight("from", "last", full_low, seen.full_high)
            self.tiles(low, stop, ring, TILE, lambda *at: self.tile(self.near, rings, vectors, sight, *at))

        self.each_near(seen.low, b.add(seen.high, 1), seen.full_high, kind)

    def bound(self, vectors: Value, name: str, make: Callable[[Callable[[str], Value]], Value]) -> None:
        """The first or last position that a query sees of the planes that are worked on, made of other bounds of it."""
        b, row = self.b, self.b.i64(0)

        def vector(w: Value, _: list[Value]) -> None:
            found = make(lambda other: b.load(self.lanes_of(other, row, w), b.vec(I32)))
            b.store(found, self.lanes_of(name, row, w))

        b.loop(0, vectors, 1, [], vector)

    # -- an item's beginning and end --

    def gather(self, start: Value, count: Value, group: Value, vectors: Value) -> Seen:
        """Turns q over and starts every query."""
        b, spec = self.b, self.spec
        n = b.mul(count, spec.share)
        head = b.mul(group, spec.share)

        def query(i: Value, seen: list[Value]) -> list[Value]:
            real = smaller(b, i, b.sub(n, 1))
            row = b.add(start, b.ir.udiv(real, b.i64(spec.share)))
            h = b.add(head, b.ir.urem(real, b.i64(spec.share)))
            given = b.add(b.mul(row, 4 * spec.q_stride), b.mul(h, 4 * spec.query_size))
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
            row = Row(b, "f32", spec.query_size)
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
        return Seen(*seen)

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

    def tile(
        self,
        planes: Planes,
        rings: tuple[Value, Value],
        vectors: Value,
        sight: Sight,
        p: Value,
        place: Value,
        count: Value,
    ) -> None:
        """`count` positions from p on, which lie at `place` of the rings."""
        b, spec, values = self.b, self.spec, None
        self.score(self.convert(planes, planes.keys, rings[0], place, count), count, vectors)
        if spec.shared:
            values = self.convert(planes, planes.values, rings[1], place, count)
            self.score(values, count, vectors, spec.key_size)
        end = b.add(p, b.sub(count, 1))
        inside = b.ir.and_(b.ir.icmp_signed(">=", p, sight.full_low), b.ir.icmp_signed("<=", end, sight.full_high))
        with b.ir.if_else(inside) as (all_seen, border):
            for branch, masked in ((all_seen, None), (border, sight)):
                with branch:
                    b.loop(0, vectors, 1, [], lambda w, _, m=masked: self.soften(w, p, count, m))
        values = values or self.convert(planes, planes.values, rings[1], place, count)
        self.accumulate(values, count, vectors)

    def convert(self, planes: Planes, plane: Plane, ring: Value, place: Value, count: Value) -> Tile:
        """Positions of K or V to f32."""
        if isinstance(plane, Codes):
            return self.decode(plane, ring, planes.capacity, place, count)
        b = self.b
        first = plane.at(ring, place)

        def position(j: Value, _: list[Value]) -> None:
            source, to = b.at(first, b.mul(j, plane.stride)), self.place("tile", j)
            plane.each(lambda d, partial: plane.store(plane.load(source, d, partial), to, d))

        b.loop(0, count, 1, [], position)
        return Tile(b, self.place("tile", b.i64(0)), self.places["tile"].stride, 4)

    def decode(self, codes: Codes, ring: Value, capacity: Value, place: Value, count: Value) -> Tile:
        """Whole groups of positions; the tile begins where the first one that is wanted lies."""
        b, layout, row = self.b, codes.layout, 4 * TILE
        before = b.bit_and(place, GROUP - 1)
        start, scales = codes.at(ring, place), codes.scales(ring, capacity, place)
        tile = self.place("tile", b.i64(0))

        def group(g: Value, _: list[Value]) -> None:
            here, its_scales = b.at(start, b.mul(g, layout.group_bytes)), b.at(scales, b.mul(g, layout.scale_bytes))
            to = b.at(tile, b.mul(g, 4 * GROUP))

            def block(k: Value, _: list[Value]) -> None:
                scale = codes.scale(its_scales, k)

                def turn(t: Value, _: list[Value]) -> None:
                    index = b.add(b.mul(k, codes.turns), t)
                    units, first = codes.of_turn(here, index), b.at(to, b.mul(index, row * UNIT * codes.turn))
                    for u in range(codes.turn):
                        for i, value in enumerate(units.floats(u)):
                            b.store(b.mul(value, scale), first, row * (UNIT * u + i))

                b.loop(0, codes.turns, 1, [], turn)

            b.loop(0, layout.blocks, 1, [], block)

        b.loop(0, quotient_up(b, b.add(before, count), b.i64(GROUP)), 1, [], group)
        return Tile(b, b.at(tile, b.mul(before, 4)), 4, row)

    def score(self, tile: Tile, count: Value, vectors: Value, first: int = 0) -> None:
        """scores = K q^T of a tile. What is beyond `count`, up to whole blocks, is of no meaning. first: the tile is V,
        whose dimensions from there on are keys and add to the scores."""
        b, most, stop = self.b, self.most, self.spec.value_size if first else self.spec.key_size

        def block(j: Value, _: list[Value]) -> None:
            def products(w: Value, width: int) -> None:
                def add(d: Value, sums: list[Value]) -> list[Value]:
                    xs = self.side_by_side("q", d, w, width)
                    at = tile.at(j, d)
                    return self.outer(sums, [b.load(at, F32, m * tile.position, align=4) for m in range(most)], xs)

                sums = [b.zeros()] * (most * width)
                if first:
                    sums = [x for m in range(most) for x in self.side_by_side("scores", b.add(j, m), w, width)]
                sums = b.loop(first, stop, 1, sums, add)
                for m in range(most):
                    self.store("scores", b.add(j, m), w, sums[m * width : (m + 1) * width])

            self.by_vectors(vectors, products)

        b.loop(0, count, most, [], block)

    def soften(self, w: Value, p: Value, count: Value, sight: Sight | None) -> None:
        """A vector of queries: scores of a tile that starts at position p become exponentials, relative to the new
        maximum. Without a sight all queries see all of it."""
        b, spec = self.b, self.spec
        zero, floats = b.i64(0), b.vec(F32)
        ends = (sight.first, sight.last) if sight else ()
        seen = [b.load(self.lanes_of(name, zero, w), b.vec(I32)) for name in ends]
        old = b.load(self.lanes_of("peak", zero, w), floats)

        def most(j: Value, carried: list[Value]) -> list[Value]:
            at = self.lanes_of("scores", j, w)
            s = b.load(at, floats)
            if spec.softcap is not None:
                s = softcap(b, s, spec.softcap)
            if sight:
                position = b.splat(b.ir.trunc(b.add(p, j), I32))
                after, before = (
                    b.ir.icmp_signed(*how) for how in ((">=", position, seen[0]), ("<=", position, seen[1]))
                )
                s = b.ir.select(b.ir.and_(after, before), s, b.splat(float("-inf")))
            if sight or spec.softcap is not None:
                b.store(s, at)
            return [b.max(s, carried[0])]

        (peak,) = b.loop(0, count, 1, [old], most)
        fade = exp(b, b.sub(old, peak))

        def power(j: Value, carried: list[Value]) -> list[Value]:
            at = self.lanes_of("scores", j, w)
            e = weight(b, b.sub(b.load(at, floats), peak))
            b.store(e, at)
            return [b.add(carried[0], e)]

        (total,) = b.loop(0, count, 1, [b.zeros()], power)
        total = b.fma(b.load(self.lanes_of("total", zero, w), floats), fade, total)
        for name, value in (("peak", peak), ("fade", fade), ("total", total)):
            b.store(value, self.lanes_of(name, zero, w))

    def accumulate(self, tile: Tile, count: Value, vectors: Value) -> None:
        """out = out * fade + V^T exponentials, as many columns at a time as stay in registers."""
        b = self.b

        def columns(e: Value, n: int) -> None:
            def few(w: Value, width: int) -> None:
                def add(j: Value, sums: list[Value]) -> list[Value]:
                    xs = self.side_by_side("scores", j, w, width)
                    at = tile.at(j, e)
                    return self.outer(sums, [b.load(at, F32, m * tile.dim, align=4) for m in range(n)], xs)

                # The tile is summed by itself: fewer roundings than adding each position to the whole.
                products = b.loop(0, count, 1, [b.zeros()] * (n * width), add)
                fades = self.side_by_side("fade", b.i64(0), w, width)
                for m in range(n):
                    old = self.side_by_side("out", b.add(e, m), w, width)
                    new = products[m * width : (m + 1) * width]
                    self.store("out", b.add(e, m), w, [b.fma(*ofn) for ofn in zip(old, fades, new, strict=True)])

            self.by_vectors(vectors, few)

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
