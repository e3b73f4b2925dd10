"""Attention of rows that are alone of their sequence, as in decoding.

All positions that all these rows see in all groups are laid end to end and cut into equal *parts*, which threads share,
so that each byte of K and V is read once. All query heads of a group share what is read. How the parts are cut does not
depend on the number of threads, so that each number of them gives the same bits. Where a part ends within a group, what
there is of it so far is kept, and after a barrier the parts of a group are put together (`attend_parts.emit_merge`).

A thread's scratch, for n heads of a group:

    scores [n][tile]        of a tile; later their exponentials
    weights [n][tile]       these times the scales of V's codes
    fade   [n]              factor that brings `out` to a new maximum
    out    [n][value]       weighted sum of V so far
    peak, total [n]         maximum and sum so far

`attend_parts` has what is kept of the parts; `attend_plain`, `attend_codes` and `attend_integers` have the products
with K and V.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from llvmlite import ir

from ..build import F32, I32, Build, Target, Value
from ..coded import GROUP
from ..math import exp, softcap
from . import larger, quotient_up, smaller, split
from .attend import LOWEST, Array, Attend, Kernel, Plane, Planes, Ring, declare, weight
from .attend_codes import Coded, CodedKeys, CodedValues
from .attend_integers import IntegerKeys, IntegerValues
from .attend_parts import BEGINS, ENDS, PARTS, Group, State, clear, divide, each_vector, kept, layout, own_layout
from .attend_plain import PlainKeys, PlainValues, Span
from .codes import Codes

Pair: TypeAlias = tuple[Value, Value]  # of K and V


@dataclass(frozen=True)
class Source:
    """Planes, and how products with them are made."""

    planes: Planes
    keys: PlainKeys | CodedKeys | IntegerKeys
    values: PlainValues | CodedValues | IntegerValues
    more: PlainKeys | CodedKeys | None  # the dimensions of keys that are V's

    @property
    def coded(self) -> bool:
        """Whether positions are read by whole groups."""
        return isinstance(self.keys, Coded) or isinstance(self.values, Coded)


def emit_attend_one(module: ir.Module, target: Target, name: str, spec: Attend) -> ir.Function:
    """The function that `attend.declare` describes, for rows that have no neighbour of the same sequence; it has one
    argument more, what is kept of the parts. `emit_merge` makes what has to be called when all threads are through."""
    function, b = declare(module, target, name, spec, "parts")
    _One(b, spec, function.args, own_layout(spec)[0]).run()
    b.ir.ret_void()
    return function


class _One(Kernel):
    def __init__(self, b: Build, spec: Attend, args: tuple[Value, ...], places: Mapping[str, Array]):
        super().__init__(b, spec, args, places)
        self.parts = args[-1]
        self.own = State(b, places, self.scratch, b.i64(0))
        self.sources = [self.source(self.main)] if spec.main else []
        if spec.near:
            self.sources.append(self.source(self.near))

    def source(self, planes: Planes) -> Source:
        given, capacity = (self.b, self.spec, self.own), planes.capacity
        shared = self.spec.shared
        of_keys = IntegerKeys if self.spec.query_bits else CodedKeys
        of_values = IntegerValues if self.spec.weight_bits else CodedValues

        def keys(plane: Plane, first: int) -> PlainKeys | CodedKeys:
            if isinstance(plane, Codes):
                return CodedKeys(*given, plane, capacity, first)
            return PlainKeys(*given, plane, first)

        return Source(
            planes,
            of_keys(*given, planes.keys, capacity)
            if isinstance(planes.keys, Codes)
            else PlainKeys(*given, planes.keys),
            of_values(*given, planes.values, capacity)
            if isinstance(planes.values, Codes)
            else PlainValues(*given, planes.values),
            keys(planes.values, self.spec.key_size) if shared else None,
        )

    def run(self) -> None:
        b = self.b
        for source in self.sources:
            source.keys.prepare()
        total = self.walk(lambda row, first, seen, at: None)
        least = self.spec.least
        size = larger(b, b.bit_and(b.add(quotient_up(b, total, b.i64(PARTS)), least - 1), -least), b.i64(least))
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
        of_row, of_group = b.mul(group.row, 4 * spec.q_stride), b.mul(group.group, 4 * spec.share * spec.query_size)
        query = b.at(self.q, b.add(of_row, of_group))

        def head(h: Value, _: list[Value]) -> None:
            clear(b, spec, self.own.place("out", h))
            b.store(b.f32(LOWEST), self.own.place("peak", h), align=4)
            b.store(b.f32(0.0), self.own.place("total", h), align=4)

        b.loop(0, spec.share, 1, [], head)
        last = b.sub(b.add(group.first, group.seen), 1)
        for source in self.sources:
            rings = self.rings(source.planes, group.row, group.group)
            which = b.add(b.mul(group.row, spec.groups), group.group)
            source.keys.begin(query, which)
            if source.more:
                source.more.begin(query, which)

            def stretch(low: Value, stop: Value, ring: Ring, source: Source = source, rings: Pair = rings) -> None:
                self.tiles(low, stop, ring, spec.tile, lambda _, *where: self.tile(source, rings, *where))

            if source.planes is self.main:
                stretch(*self.main_stretch(low, stop, last), self.main_ring())
            else:
                self.each_near(low, stop, last, lambda _, *where, stretch=stretch: stretch(*where))

    def tile(self, source: Source, rings: Pair, place: Value, count: Value) -> None:
        """Some positions that follow one another in the rings of K and V."""
        b, first = self.b, self.b.i64(0)
        if source.coded:
            first = b.bit_and(place, GROUP - 1)
        span = Span(b.sub(place, first), first, b.add(first, count))
        (keys, values), following = rings, b.add(span.place, self.spec.tile)
        source.keys.score(keys, span, source.values.coming(values, span.place))
        if source.more:
            source.more.score(values, span, source.values.coming(values, following))
        b.loop(0, self.spec.share, 1, [], lambda h, _: self.soften(h, span, source.coded))
        source.values.accumulate(values, span, source.keys.coming(keys, following))

    def soften(self, head: Value, span: Span, grouped: bool) -> None:
        """A head's scores of a tile become exponentials, relative to the new maximum. Where K or V come in groups, all
        positions of these that are not in the tile become zeros."""
        b, spec, lanes = self.b, self.spec, GROUP if grouped else self.b.lanes
        floats, scores, start = b.vec(F32, lanes), self.place("scores", head), b.bit_and(span.first, -lanes)

        def cap(j: Value, _: list[Value]) -> None:
            s = b.load(scores, floats, b.mul(j, 4))
            b.store(softcap(b, s, spec.softcap), scores, b.mul(j, 4))

        if spec.softcap is not None:
            b.loop(start, span.stop, lanes, [], cap)
        if grouped:
            self.cut(scores, start, span, lanes)
        self.cut(scores, b.bit_and(b.sub(span.stop, 1), -lanes), span, lanes)

        def most(j: Value, carried: list[Value]) -> list[Value]:
            return [b.max(b.load(scores, floats, b.mul(j, 4)), carried[0])]

        (peaks,) = b.loop(start, span.stop, lanes, [b.splat(LOWEST, lanes)], most)
        before = b.load(self.own.place("peak", head), F32)
        peak = b.max(b.reduce_max(peaks), before)
        fade = exp(b, b.sub(before, peak))

        def power(j: Value, carried: list[Value]) -> list[Value]:
            e = weight(b, b.sub(b.load(scores, floats, b.mul(j, 4)), b.splat(peak, lanes)))
            b.store(e, scores, b.mul(j, 4))
            return [b.add(carried[0], e)]

        (sums,) = b.loop(start, span.stop, lanes, [b.zeros(lanes)], power)
        total = b.fma(b.load(self.own.place("total", head), F32), fade, b.reduce_add(sums))
        for at, value in ((self.own.place("peak", head), peak), (self.own.place("total", head), total)):
            b.store(value, at, align=4)
        b.store(fade, self.place("fade", head), align=4)

    def cut(self, scores: Value, j: Value, span: Span, lanes: int) -> None:
        """Of a vector of scores, from number j on, those that are not of the tile become minus infinity."""
        b, at = self.b, self.b.mul(j, 4)
        numbers = b.add(b.const(b.vec(I32, lanes), list(range(lanes))), b.splat(b.ir.trunc(j, I32), lanes))
        first, stop = (b.splat(b.ir.trunc(end, I32), lanes) for end in (span.first, span.stop))
        there = b.ir.and_(b.ir.icmp_signed(">=", numbers, first), b.ir.icmp_signed("<", numbers, stop))
        s = b.load(scores, b.vec(F32, lanes), at)
        b.store(b.ir.select(there, s, b.splat(float("-inf"), lanes)), scores, at)
