"""Parts of attention: sums of some positions of a group, kept for all threads and put together after a barrier.

A part may keep sums of two groups: of the one that it begins in, and of the one that it ends in. For n heads a group:

    out    [PARTS][2 n][value]    weighted sums of V
    peak, total [PARTS][2 n]      maxima and sums
    task   [PARTS][4]             of the group that it begins, i64: whether there is one; row, group, end
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llvmlite import ir

from ..build import F32, I64, PTR, VOID, Build, Target, Value
from ..coded import coded
from ..math import exp
from .attend import LOWEST, Array, Attend, Row, arrays, padded

PARTS = 64  # at most: more would have more to put together, fewer leave threads without work
BEGINS, ENDS = range(2)  # which group of a part: that it begins in, with positions of earlier parts; that it ends in
TASK = ("there", "row", "group", "end")


def layout(spec: Attend) -> tuple[dict[str, Array], int]:
    """What is kept of the parts."""
    return arrays(state(spec, 2 * PARTS * spec.share) | {"task": (PARTS, 8 * len(TASK))})


def own_layout(spec: Attend) -> tuple[dict[str, Array], int]:
    """A thread's scratch."""
    sizes = {name: (spec.share, 4 * spec.tile) for name in ("scores", "weights")}
    return arrays(sizes | {"fade": (spec.share, 4)} | state(spec, spec.share) | for_integers(spec))


def for_integers(spec: Attend) -> dict[str, tuple[int, int]]:
    """Arrays for the digits that K and V in codes are multiplied with in integers, for n heads of a group:

    digits  [n][digits][key]           of the queries
    taken   [n][digits][blocks]        i32: what the bias of levels adds to sums, to be taken off
    steps   [n][blocks]                f32: of the queries
    source  [1]                        i64: the group of a row that they are of
    shares  [n][digits][tile / 16][64] of the weights: those of four positions in each of four lanes
    portion [n]                        f32: the step of the weights
    excess  [n][digits]                i32: as `taken`, of V
    """
    n, found = spec.share, dict[str, tuple[int, int]]()
    if spec.query_bits:
        plane, digits = coded(spec.key_dtype, spec.key_size), spec.query_bits // 8
        assert plane is not None
        found |= {"digits": (n, digits * spec.key_size), "taken": (n, 4 * digits * plane.blocks)}
        found |= {"steps": (n, 4 * plane.blocks), "source": (1, 8)}
    if spec.weight_bits:
        digits = spec.weight_bits // 8
        found |= {"shares": (n, 4 * digits * spec.tile), "portion": (n, 4), "excess": (n, 4 * digits)}
    return found


def state(spec: Attend, n: int) -> dict[str, tuple[int, int]]:
    """Arrays for the sums of n heads."""
    return {"out": (n, 4 * padded(spec.value_size)), "peak": (n, 4), "total": (n, 4)}


@dataclass(frozen=True)
class Group:
    """A group of a row: it sees so many positions from `first` on; of those of all, they begin at `at`."""

    row: Value
    group: Value
    first: Value = None
    at: Value = None
    seen: Value = None


@dataclass(frozen=True)
class State:
    """Where sums of the heads of a group lie: those of a head in row number `first` + head of the arrays."""

    b: Build
    places: Mapping[str, Array]
    memory: Value
    first: Value

    def place(self, name: str, head: Value) -> Value:
        return self.places[name].row(self.b, self.memory, self.b.add(self.first, head))


def kept(b: Build, spec: Attend, parts: Value, part: Value, which: Value | int) -> State:
    """The sums that a part keeps of one of its groups."""
    first = b.mul(b.add(b.mul(part, 2), which), spec.share)
    return State(b, layout(spec)[0], parts, first)


def emit_merge(module: ir.Module, target: Target, name: str, spec: Attend) -> ir.Function:
    """`void name(ptr out, scratch, parts, i64 tid, threads)`: puts together what is kept of the parts."""
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, PTR, I64, I64]), name)
    b = Build(ir.IRBuilder(function.append_basic_block()), target)
    _Merge(b, spec, function.args).run()
    b.ir.ret_void()
    return function


class _Merge:
    def __init__(self, b: Build, spec: Attend, args: tuple[Value, ...]):
        self.b, self.spec = b, spec
        self.out, scratch, self.parts, self.tid, self.threads = args
        self.own = State(b, own_layout(spec)[0], scratch, b.i64(0))

    def run(self) -> None:
        """Threads take turns with the heads of all groups that are in several parts."""
        b, task = self.b, layout(self.spec)[0]["task"]

        def part(begin: Value, carried: list[Value]) -> list[Value]:
            here = task.row(b, self.parts, begin)
            there, row, group, end = (b.load(here, I64, 8 * i, align=8) for i in range(len(TASK)))
            some = b.ir.icmp_signed("!=", there, b.i64(0))

            def head(h: Value, _: list[Value]) -> None:
                turn = b.ir.urem(b.add(carried[0], h), self.threads)
                with b.ir.if_then(b.ir.icmp_signed("==", turn, self.tid)):
                    self.head(Group(row, group), begin, end, h)

            with b.ir.if_then(some):
                b.loop(0, self.spec.share, 1, [], head)
            return [b.ir.select(some, b.add(carried[0], self.spec.share), carried[0])]

        b.loop(0, PARTS, 1, [b.i64(0)], part)

    def head(self, group: Group, begin: Value, end: Value, head: Value) -> None:
        """Parts begin to end of a group, in this order."""
        b, spec, stop = self.b, self.spec, self.b.add(end, 1)

        def of(part: Value) -> State:
            """The first part ends with this group, the others begin with it."""
            which = b.ir.select(b.ir.icmp_signed("==", part, begin), b.i64(ENDS), b.i64(BEGINS))
            return kept(b, spec, self.parts, part, which)

        def higher(part: Value, carried: list[Value]) -> list[Value]:
            return [b.max(b.load(of(part).place("peak", head), F32), carried[0])]

        (peak,) = b.loop(begin, stop, 1, [b.f32(LOWEST)], higher)
        sums = self.own.place("out", head)
        clear(b, spec, sums)

        def add(part: Value, carried: list[Value]) -> list[Value]:
            theirs = of(part)
            factor = exp(b, b.sub(b.load(theirs.place("peak", head), F32), peak))
            more, factors = theirs.place("out", head), b.splat(factor)

            def vector(at: Value) -> None:
                added = b.fma(b.load(more, b.vec(F32), at), factors, b.load(sums, b.vec(F32), at))
                b.store(added, sums, at)

            each_vector(b, spec, vector)
            return [b.fma(b.load(theirs.place("total", head), F32), factor, carried[0])]

        (total,) = b.loop(begin, stop, 1, [b.f32(0.0)], add)
        b.store(total, self.own.place("total", head), align=4)
        divide(b, spec, self.own, head, self.out, group)


def each_vector(b: Build, spec: Attend, body: Callable[[Value], None]) -> None:
    """`body(offset)` for each vector of a head's sums."""
    b.loop(0, 4 * padded(spec.value_size), 4 * b.lanes, [], lambda offset, _: body(offset))


def clear(b: Build, spec: Attend, out: Value) -> None:
    """Zeros for the sums of a head."""
    each_vector(b, spec, lambda offset: b.store(b.zeros(), out, offset))


def divide(b: Build, spec: Attend, state: State, head: Value, out: Value, group: Group) -> None:
    """The sums of a head of a group, each divided by their total, to where the result belongs."""
    values, source = Row(b, "f32", spec.value_size), state.place("out", head)
    totals = b.splat(b.load(state.place("total", head), F32))
    index = b.add(b.mul(group.row, spec.heads), b.add(b.mul(group.group, spec.share), head))
    to = b.at(out, b.mul(index, values.stride))

    def vector(j: int | Value, partial: bool) -> None:
        at = b.mul(b.i64(j) if isinstance(j, int) else j, 4 * b.lanes)
        values.store(b.div(b.load(source, b.vec(F32), at), totals), to, j, partial)

    values.each(vector)
