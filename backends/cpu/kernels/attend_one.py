"""Attention of rows that are alone of their sequence, as in decoding: dimensions lie in the lanes of vectors.

All positions that all these rows see in all groups are laid end to end and cut into equal *parts*, which threads share,
so that each byte of K and V is read once. All query heads of a group share what is read. How the parts are cut does not
depend on the number of threads, so that each number of them gives the same bits. Where a part ends within a group, what
there is of it so far is kept, and after a barrier the parts of a group are put together (`attend_parts.emit_merge`).

A thread's scratch, for n heads of a group:

    scores [n][TILE]        of a tile; later their exponentials
    fade   [n]              factor that brings `out` to a new maximum
    out    [n][value]       weighted sum of V so far
    peak, total [n]         maximum and sum so far

`attend_parts` has what is kept of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llvmlite import ir

from ..build import F32, I32, Build, Target, Value
from ..math import exp, softcap
from . import larger, quotient_up, smaller, split
from .attend import (
    LOWEST,
    TILE,
    Array,
    Attend,
    Kernel,
    Row,
    declare,
    weight,
)
from .attend_parts import BEGINS, ENDS, PARTS, Group, State, clear, divide, each_vector, kept, layout, own_layout


def emit_attend_one(module: ir.Module, target: Target, name: str, spec: Attend) -> ir.Function:
    """The function that `attend.declare` describes, for rows that have no neighbour of the same sequence; it has one
    argument more, what is kept of the parts. `emit_merge` makes what has to be called when all threads are through."""
    function, b = declare(module, target, name, "parts")
    _One(b, spec, function.args, own_layout(spec)[0]).run()
    b.ir.ret_void()
    return function


class _One(Kernel):
    def __init__(self, b: Build, spec: Attend, args: tuple[Value, ...], places: Mapping[str, Array]):
        super().__init__(b, spec, args, places)
        self.parts = args[-1]
        self.own = State(b, places, self.scratch, b.i64(0))

    def run(self) -> None:
        b = self.b
        total = self.walk(lambda row, first, seen, at: None)
        size = larger(b, quotient_up(b, total, b.i64(PARTS)), b.i64(TILE))
        parts = quotient_up(b, total, size)
        mine = split(b, parts, self.tid, self.threads)

        def part(index: Value, _: list[Value]) -> None:
            begin = b.mul(index, size)
            end = smaller(b, b.add(begin, size), total)
            self.forget(index)

            def groups(row: Value, first: Value, seen: Value, at: Value) -> None:
                def group(g: Value, _: list[Value]) -> None:
                    of = Group(row, g, first, b.add(at, b.mul(g, seen)), seen)
                    self.stretch(of, index, begin, end, size)

                b.loop(0, self.spec.groups, 1, [], group)

            self.walk(groups)

        b.loop(*mine, 1, [], part)
        unused = (b.add(parts, end) for end in split(b, b.sub(PARTS, parts), self.tid, self.threads))
        b.loop(*unused, 1, [], lambda part, _: self.forget(part))

    def forget(self, part: Value) -> None:
        """A part's task is that of an earlier step until it gets another."""
        self.b.store(self.b.i64(0), self.task(part), align=8)

    def task(self, part: Value) -> Value:
        return layout(self.spec)[0]["task"].row(self.b, self.parts, part)

    def walk(self, body: Callable[[Value, Value, Value, Value], None]) -> Value:
        """`body(row, first position seen, how many, how many by all groups of rows before)` for each row. Rows that are
        not alone see none here. Gives how many are seen in all."""
        b = self.b

        def row(r: Value, carried: list[Value]) -> list[Value]:
            begins, ends = self.borders(r)
            first, last = self.sight(r)
            seen = b.ir.select(b.ir.and_(begins, ends), b.add(b.sub(last, first), 1), b.i64(0))
            body(r, first, seen, carried[0])
            return [b.add(carried[0], b.mul(seen, self.spec.groups))]

        return b.loop(0, self.rows, 1, [b.i64(0)], row)[0]

    def stretch(self, group: Group, part: Value, begin: Value, end: Value, size: Value) -> None:
        """What falls to a part, positions begin to end of all, of a group."""
        b, spec = self.b, self.spec
        stop = b.add(group.at, group.seen)
        low, high = larger(b, group.at, begin), smaller(b, stop, end)
        with b.ir.if_then(b.ir.icmp_signed("<", low, high)):
            self.item(group, b.add(group.first, b.sub(low, group.at)), b.add(group.first, b.sub(high, group.at)))
            starts, ends = b.ir.icmp_signed("==", low, group.at), b.ir.icmp_signed("==", high, stop)
            with b.ir.if_else(b.ir.and_(starts, ends)) as (whole, partly):
                with whole:
                    b.loop(0, spec.share, 1, [], lambda h, _: divide(b, spec, self.own, h, self.out, group))
                with partly:
                    self.keep(part, b.ir.select(starts, b.i64(ENDS), b.i64(BEGINS)))
                    with b.ir.if_then(starts):
                        last = b.ir.udiv(b.sub(stop, 1), size)
                        for i, value in enumerate((b.i64(1), group.row, group.group, last)):
                            b.store(value, self.task(part), 8 * i, align=8)

    def keep(self, part: Value, which: Value) -> None:
        """The sums of a group so far, for the merge."""
        b, to = self.b, kept(self.b, self.spec, self.parts, part, which)

        def head(h: Value, _: list[Value]) -> None:
            source, target = self.own.place("out", h), to.place("out", h)
            each_vector(b, self.spec, lambda at: b.store(b.load(source, b.vec(F32), at), target, at))
            for name in ("peak", "total"):
                b.store(b.load(self.own.place(name, h), F32, align=4), to.place(name, h), align=4)

        b.loop(0, self.spec.share, 1, [], head)

    # -- some positions of one group --

    def item(self, group: Group, low: Value, stop: Value) -> None:
        """Positions low to stop (exclusive), from nothing."""
        b, spec = self.b, self.spec
        of_row, of_group = b.mul(group.row, 4 * spec.q_stride), b.mul(group.group, 4 * spec.share * spec.key_size)
        query = b.at(self.q, b.add(of_row, of_group))

        def head(h: Value, _: list[Value]) -> None:
            clear(b, spec, self.own.place("out", h))
            b.store(b.f32(LOWEST), self.own.place("peak", h), align=4)
            b.store(b.f32(0.0), self.own.place("total", h), align=4)

        b.loop(0, spec.share, 1, [], head)
        keys, values = self.cache(group.row, group.group)

        def tile(p: Value, place: Value, count: Value) -> None:
            k = b.at(keys, b.mul(place, self.keys.stride))
            v = b.at(values, b.mul(place, self.values.stride))
            self.score(query, k, v, count)
            b.loop(0, spec.share, 1, [], lambda h, _: self.soften(h, count))
            self.accumulate(v, count, b.at(k, TILE * self.keys.stride))

        self.tiles(low, stop, tile)

    def blocks(self, most: int) -> list[tuple[int, int]]:
        """(first, count): the heads of a group in as few blocks as `most` allows."""
        return [
            (first, width) for start, stop, width in even(self.spec.share, most) for first in range(start, stop, width)
        ]

    @property
    def sums(self) -> int:
        """Vectors that are summed up in registers."""
        return 16 if self.b.target.registers == 32 else 8

    def score(self, query: Value, keys: Value, coming: Value, count: Value) -> None:
        """scores = q K^T of a tile. Beyond `count`, up to whole blocks, positions repeat the last one."""
        b = self.b
        blocks = self.blocks(self.sums // 2)
        positions = 4 if 4 * blocks[0][1] <= self.sums else 2
        span = positions * self.values.stride

        def block(j: Value, _: list[Value]) -> None:
            last = b.sub(count, 1)
            rows = [b.at(keys, b.mul(smaller(b, b.add(j, i), last), self.keys.stride)) for i in range(positions)]
            ask = b.at(coming, b.mul(j, self.values.stride))
            for first, n in blocks:
                self.products(query, first, n, rows, b.mul(j, 4), (ask, span) if first == 0 else None)

        b.loop(0, count, positions, [], block)

    def products(
        self, query: Value, first: int, n: int, rows: list[Value], column: Value, ask: tuple[Value, int] | None
    ) -> None:
        """The scores of n heads and a few positions."""
        b, queries = self.b, Row(self.b, "f32", self.spec.key_size)
        starts = [b.at(query, (first + i) * queries.stride) for i in range(n)]

        def add(d: int | Value, sums: list[Value], partial: bool = False) -> list[Value]:
            self.ask(ask, d, queries.whole)
            ks = [self.keys.load(row, d, partial) for row in rows]
            xs = [queries.load(start, d, partial) for start in starts]
            return [b.fma(xs[i // len(ks)], ks[i % len(ks)], total) for i, total in enumerate(sums)]

        sums = b.loop(0, queries.whole, 1, [b.zeros()] * (n * len(rows)), add)
        if queries.tail:
            sums = add(queries.whole, sums, True)
        for start in range(0, len(sums), 4):
            some = sums[start : start + 4]
            four = b.mul(reduce_four(b, some + some[:1] * (4 - len(some))), self.spec.scale)
            for i in range(0, len(some), len(rows)):
                head = first + (start + i) // len(rows)
                b.store(b.slice(four, i, len(rows)), self.place("scores", b.i64(head)), column)

    def soften(self, head: Value, count: Value) -> None:
        """A head's scores of a tile become exponentials, relative to the new maximum."""
        b, spec, lanes = self.b, self.spec, self.b.lanes
        counting, stop = b.const(b.vec(I32), list(range(lanes))), b.splat(b.ir.trunc(count, I32))
        scores = self.place("scores", head)

        def cap(j: Value, carried: list[Value]) -> list[Value]:
            s = b.load(scores, b.vec(F32), b.mul(j, 4))
            if spec.softcap is not None:
                s = softcap(b, s, spec.softcap)
            there = b.ir.icmp_signed("<", b.add(counting, b.splat(b.ir.trunc(j, I32))), stop)
            s = b.ir.select(there, s, b.splat(float("-inf")))
            b.store(s, scores, b.mul(j, 4))
            return [b.max(s, carried[0])]

        (peaks,) = b.loop(0, count, lanes, [b.splat(LOWEST)], cap)
        before = b.load(self.own.place("peak", head), F32)
        peak = b.max(b.reduce_max(peaks), before)
        fade = exp(b, b.sub(before, peak))

        def power(j: Value, carried: list[Value]) -> list[Value]:
            e = weight(b, b.sub(b.load(scores, b.vec(F32), b.mul(j, 4)), b.splat(peak)))
            b.store(e, scores, b.mul(j, 4))
            return [b.add(carried[0], e)]

        (sums,) = b.loop(0, count, lanes, [b.zeros()], power)
        total = b.fma(b.load(self.own.place("total", head), F32), fade, b.reduce_add(sums))
        for at, value in ((self.own.place("peak", head), peak), (self.own.place("total", head), total)):
            b.store(value, at, align=4)
        b.store(fade, self.place("fade", head), align=4)

    def accumulate(self, values: Value, count: Value, coming: Value) -> None:
        """out = out * fade + exponentials V, as many columns at a time as stay in registers."""
        for first, n in self.blocks(self.sums // 2):
            self.of_heads(values, count, first, n, coming if first == 0 else None)

    def of_heads(self, values: Value, count: Value, first: int, n: int, coming: Value | None) -> None:
        """The same for n heads from the first on."""
        row = self.values

        def some(e: Value, width: int, partial: bool = False) -> None:
            self.columns(values, count, first, n, e, width, coming, partial)

        for start, stop, width in even(row.whole, min(8, self.sums // n)):
            self.b.loop(start, stop, width, [], lambda e, _, w=width: some(e, w))
        if row.tail:
            some(self.b.i64(row.whole), 1, True)

    def columns(
        self,
        values: Value,
        count: Value,
        first: int,
        n: int,
        e: Value,
        width: int,
        coming: Value | None,
        partial: bool,
    ) -> None:
        """`width` vectors of columns from number e on, of n heads."""
        b, row = self.b, self.values
        weights = [self.place("scores", b.i64(first + i)) for i in range(n)]

        def add(j: Value, sums: list[Value]) -> list[Value]:
            at = b.at(values, b.mul(j, row.stride))
            if coming is not None:
                self.ask((b.at(coming, b.mul(j, self.keys.stride)), self.keys.stride), e, row.whole, width)
            vs = [row.load(at, b.add(e, c), partial) for c in range(width)]
            ps = [b.splat(b.load(w, F32, b.mul(j, 4))) for w in weights]
            return [b.fma(ps[i // width], vs[i % width], total) for i, total in enumerate(sums)]

        # The tile is summed by itself: fewer roundings than adding each position to the whole.
        tile = b.loop(0, count, 1, [b.zeros()] * (n * width), add)
        for i in range(n):
            fade = b.splat(b.load(self.place("fade", b.i64(first + i)), F32))
            for c in range(width):
                at = b.at(self.own.place("out", b.i64(first + i)), b.mul(b.add(e, c), 4 * b.lanes))
                b.store(b.fma(b.load(at, b.vec(F32)), fade, tile[i * width + c]), at)

    def ask(self, what: tuple[Value, int] | None, part: int | Value, parts: int, count: int = 1) -> None:
        """Prefetch `count` of the `parts` of so many bytes. Each byte is used once, from memory: V had better arrive
        while scores are made, and the next tile's K while V is multiplied."""
        if what is not None and parts and not isinstance(part, int):
            span = -(-what[1] // parts)
            self.b.prefetch(what[0], self.b.mul(part, span), span * count)


def even(n: int, most: int) -> list[tuple[int, int, int]]:
    """(first, last, width): n things in as few parts as `most` allows, equal or the wider ones first."""
    parts = -(-n // most)
    if parts == 0:
        return []
    width, wide = divmod(n, parts)
    middle = wide * (width + 1)
    return [r for r in ((0, middle, width + 1), (middle, n, width)) if r[0] < r[1]]


def reduce_four(b: Build, vectors: Sequence[Value]) -> Value:
    """The sums of the lanes of four vectors, as one vector of four: shuffles within 128 bits come first."""

    def pick(x: Value, y: Value, which: Sequence[int]) -> Value:
        """From every four lanes of x (0 to 3) and y (4 to 7)."""
        n = x.type.count
        lanes = [base + (i if i < 4 else n + i - 4) for base in range(0, n, 4) for i in which]
        return b.shuffle(x, lanes, y)

    def pair(x: Value, y: Value, low: Sequence[int], high: Sequence[int]) -> Value:
        return b.add(pick(x, y, low), pick(x, y, high))

    w, x, y, z = vectors
    wx, yz = (pair(*two, (0, 4, 1, 5), (2, 6, 3, 7)) for two in ((w, x), (y, z)))
    total = pair(wx, yz, (0, 1, 4, 5), (2, 3, 6, 7))
    while (n := total.type.count // 2) >= 4:
        total = b.add(b.slice(total, 0, n), b.slice(total, n, n))
    return total
