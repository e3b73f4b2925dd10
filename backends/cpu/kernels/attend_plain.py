"""One row's attention over planes of numbers: dimensions lie in the lanes of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..build import F32, Build, Value
from . import smaller
from .attend import Attend, Row
from .attend_parts import State


@dataclass(frozen=True)
class Span:
    """Some positions of a tile: they lie at places `place` + `first` to `place` + `stop` (exclusive) of the ring, and
    their scores from number `first` on. Codes are read by whole groups; elsewhere `first` is 0."""

    place: Value
    first: Value
    stop: Value


@dataclass(frozen=True)
class Coming:
    """What will be read next: from where, and how many bytes for each position."""

    start: Value
    stride: int

    def ask(self, b: Build, position: Value, positions: int, part: int | Value, parts: int, count: int = 1) -> None:
        """Prefetch `count` of the `parts` of some positions, while the present tile is worked on. Each byte is used
        once, from memory: V had better arrive while scores are made, and the next K while V is multiplied."""
        if parts and not isinstance(part, int):
            span = -(-positions * self.stride // parts)
            b.prefetch(b.at(self.start, b.mul(position, self.stride)), b.mul(part, span), span * count)


class Side:
    """What the work on K and that on V share, plain and coded: the heads of a group, and their scores and sums."""

    def __init__(self, b: Build, spec: Attend, own: State):
        self.b, self.spec, self.own = b, spec, own

    @property
    def sums(self) -> int:
        """Vectors that are summed up in registers."""
        return 16 if self.b.target.registers == 32 else 8

    def blocks(self, most: int) -> list[tuple[int, int]]:
        """(first, count): the heads of a group in as few blocks as `most` allows."""
        return [
            (first, width) for start, stop, width in even(self.spec.share, most) for first in range(start, stop, width)
        ]

    def prepare(self) -> None:
        """What comes before the first part."""

    def scores(self, head: int) -> Value:
        return self.own.place("scores", self.b.i64(head))

    def put(self, head: int, offset: Value, scores: Value, adds: int) -> None:
        """Some scores of a head; adds: more of them."""
        b, to = self.b, self.b.at(self.scores(head), offset)
        b.store(b.add(b.load(to, scores.type), scores) if adds else scores, to)

    def fade(self, head: int, n: int | None = None) -> Value:
        """The factor that brings a head's sums to the new maximum, in every lane."""
        return self.b.splat(self.b.load(self.own.place("fade", self.b.i64(head)), F32), n)


class PlainKeys(Side):
    """first: rows are those of V, whose dimensions from there on are keys and add to the scores."""

    def __init__(self, b: Build, spec: Attend, own: State, row: Row, first: int = 0):
        super().__init__(b, spec, own)
        self.row, self.first = row, first
        self.keys = Row(b, row.dtype, row.size - first)

    def begin(self, query: Value, which: Value) -> None:
        """Takes the queries of the heads of a group, f32 [share][query size]; `which` is its number in all rows."""
        self.query = self.b.at(query, 4 * self.first)

    def coming(self, ring: Value, place: Value) -> Coming:
        return Coming(self.row.at(ring, place), self.row.stride)

    def score(self, ring: Value, span: Span, coming: Coming) -> None:
        """scores = q K^T of a tile. Beyond `stop`, up to whole blocks, positions repeat the last one."""
        b = self.b
        blocks = self.blocks(self.sums // 2)
        positions = 4 if 4 * blocks[0][1] <= self.sums else 2
        keys = b.at(self.row.at(ring, span.place), self.first * self.row.width)

        def block(j: Value, _: list[Value]) -> None:
            last = b.sub(span.stop, 1)
            rows = [b.at(keys, b.mul(smaller(b, b.add(j, i), last), self.row.stride)) for i in range(positions)]
            for first, n in blocks:
                self.products(first, n, rows, j, coming if first == 0 else None)

        b.loop(b.bit_and(span.first, -positions), span.stop, positions, [], block)

    def products(self, first: int, n: int, rows: list[Value], j: Value, coming: Coming | None) -> None:
        """The scores of n heads and a few positions."""
        b, queries = self.b, Row(self.b, "f32", self.keys.size)
        starts = [b.at(self.query, (first + i) * 4 * self.spec.query_size) for i in range(n)]

        def add(d: int | Value, sums: list[Value], partial: bool = False) -> list[Value]:
            if coming is not None:
                coming.ask(b, j, len(rows), d, queries.whole)
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
                self.put(first + (start + i) // len(rows), b.mul(j, 4), b.slice(four, i, len(rows)), self.first)


class PlainValues(Side):
    def __init__(self, b: Build, spec: Attend, own: State, row: Row):
        super().__init__(b, spec, own)
        self.row = row

    def coming(self, ring: Value, place: Value) -> Coming:
        return Coming(self.row.at(ring, place), self.row.stride)

    def accumulate(self, ring: Value, span: Span, coming: Coming) -> None:
        """out = out * fade + exponentials V, as many columns at a time as stay in registers."""
        values = self.row.at(ring, span.place)
        for first, n in self.blocks(self.sums // 2):
            self.of_heads(values, span, first, n, coming if first == 0 else None)

    def of_heads(self, values: Value, span: Span, first: int, n: int, coming: Coming | None) -> None:
        """The same for n heads from the first on."""
        row = self.row

        def some(e: Value, width: int, partial: bool = False) -> None:
            self.columns(values, span, first, n, e, width, coming, partial)

        for start, stop, width in even(row.whole, min(8, self.sums // n)):
            self.b.loop(start, stop, width, [], lambda e, _, w=width: some(e, w))
        if row.tail:
            some(self.b.i64(row.whole), 1, True)

    def columns(
        self,
        values: Value,
        span: Span,
        first: int,
        n: int,
        e: Value,
        width: int,
        coming: Coming | None,
        partial: bool,
    ) -> None:
        """`width` vectors of columns from number e on, of n heads."""
        b, row = self.b, self.row
        weights = [self.scores(first + i) for i in range(n)]

        def add(j: Value, sums: list[Value]) -> list[Value]:
            at = b.at(values, b.mul(j, row.stride))
            if coming is not None:
                coming.ask(b, j, 1, e, row.whole, width)
            vs = [row.load(at, b.add(e, c), partial) for c in range(width)]
            ps = [b.splat(b.load(w, F32, b.mul(j, 4))) for w in weights]
            return [b.fma(ps[i // width], vs[i % width], total) for i, total in enumerate(sums)]

        # The tile is summed by itself: fewer roundings than adding each position to the whole.
        tile = b.loop(span.first, span.stop, 1, [b.zeros()] * (n * width), add)
        for i in range(n):
            fade = self.fade(first + i)
            for c in range(width):
                at = b.at(self.own.place("out", b.i64(first + i)), b.mul(b.add(e, c), 4 * b.lanes))
                b.store(b.fma(b.load(at, b.vec(F32)), fade, tile[i * width + c]), at)


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
