"""Products of many tokens with their experts' packed weights: each expert takes all of its tokens together.

The op `group` sorts the (token, expert) pairs by expert. Threads share the sorted pairs evenly. Of a stretch of pairs
of one expert, a thread gathers the quantised activations into tiles, as the products of all rows have them, and reads
each tile of the expert's weights once for all of these. Results go where the pairs stand in the unsorted order.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from briolette.compiler.plan import quantised_bytes

from ..build import I32, I64, PTR, VOID, Build, Target, Value
from . import quotient_up, smaller, split
from .linear import Linear
from .packed import ROWS, PackedProducts

GATHERED = 8 * ROWS  # pairs of one expert gathered at a time: their activations stay in L2
WORDS = 4  # of a row, gathered at a time


def grouped(spec: Linear) -> bool:
    """Whether a product has an order in which to take its pairs."""
    return any(operand.role == "order" for operand in spec.operands)


def scratch_bytes(spec: Linear, bits: int, block: int) -> int:
    """Per thread: the activations that are gathered, if any are."""
    return 0 if not grouped(spec) else GATHERED * quantised_bytes(spec.inputs, bits, block)


def emit_grouped(module: ir.Module, target: Target, name: str, spec: Linear, bits: int, block: int) -> ir.Function:
    """As `packed.emit_packed`, with x in tiles of one row."""
    signature = ir.FunctionType(VOID, [PTR] * (len(spec.operands) + 2) + [I64] * 3)
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    _Grouped(b, spec, function.args, ROWS, bits, block).run()
    b.ir.ret_void()
    return function


class _Grouped(PackedProducts):
    """`planes` tell how the gathered tiles lie; the rows that they are gathered from lie one by one."""

    def run(self) -> None:
        b = self.b
        first, last = split(b, b.mul(self.rows, self.spec.experts), self.tid, self.threads)

        def pair(at: Value, carried: list[Value]) -> list[Value]:
            """Works off the stretch that began at `carried` where it ends with this pair."""
            (start,) = carried
            following = b.add(at, 1)
            count = b.sub(following, start)
            over = b.ir.icmp_signed("==", following, last)
            next_pair = self.pair(b.ir.select(over, at, following))
            ends = b.ir.or_(over, b.ir.icmp_signed("==", count, b.i64(GATHERED)))
            other = b.ir.icmp_signed("!=", self.expert(self.pair(at)), self.expert(next_pair))
            ends = b.ir.or_(ends, other)
            with b.ir.if_then(ends):
                self.stretch(start, count)
            return [b.ir.select(ends, following, start)]

        b.loop(first, last, 1, [first], pair)

    def stretch(self, start: Value, count: Value) -> None:
        """Pairs start .. start + count of the sorted order, which are one expert's."""
        b = self.b
        weights = self.weights_of(self.expert(self.pair(start)))
        tiles = quotient_up(b, count, b.i64(ROWS))
        b.loop(0, tiles, 1, [], lambda t, _: self.gather(t, start, count))

        def strip(n: Value, _: list[Value]) -> None:
            self.strip(n, self.scratch, weights, count, lambda r: self.pair(b.add(start, r)))

        b.loop(0, self.strips, 1, [], strip)

    def gather(self, tile: Value, start: Value, count: Value) -> None:
        """The quantised rows of a tile, side by side word by word; rows beyond the last repeat it."""
        b, end = self.b, self.b.sub(count, 1)
        row_bytes = quantised_bytes(self.spec.inputs, self.planes.bits, self.planes.block)
        rows = []
        for r in range(ROWS):
            at = smaller(b, b.add(b.mul(tile, ROWS), r), end)
            source = self.input_row(self.pair(b.add(start, at)))
            rows.append(b.at(self.pointer[self.x], b.mul(source, row_bytes)))
        to = self.planes.tile(self.scratch, tile)

        def words(count: int) -> Callable[[Value, list[Value]], None]:
            def emit(offset: Value, _: list[Value]) -> None:
                loaded = [b.load(row, b.vec(I32, count), offset, align=4) for row in rows]
                b.store(_zipped(b, loaded), to, b.mul(offset, ROWS), align=4)

            return emit

        whole = row_bytes // (4 * WORDS) * (4 * WORDS)
        b.loop(0, whole, 4 * WORDS, [], words(WORDS))
        b.loop(whole, row_bytes, 4, [], words(1))


def _zipped(b: Build, rows: list[Value]) -> Value:
    """The elements of a power of two of vectors: the first of each, then the second of each."""
    if len(rows) == 1:
        return rows[0]
    even, odd = _zipped(b, rows[::2]), _zipped(b, rows[1::2])
    size = even.type.count
    return b.shuffle(even, [half * size + i for i in range(size) for half in (0, 1)], odd)


def emit_group(module: ir.Module, target: Target, name: str, experts: int) -> ir.Function:
    """`void f(ptr ids, ptr order, i64 count, i64 tid, i64 threads)`: i32 ids below `experts` to their places sorted by
    id, those of one id in order. A counting sort, by one thread: there are a few thousand ids."""
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, I64, I64, I64]), name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    ids, order, count, tid, _ = function.args
    starts = b.ir.alloca(I64, b.i64(experts))  # first counts

    def advance(at: Value) -> Value:
        """Counts the id at `at`; gives its count before."""
        expert = b.ir.zext(b.load(ids, I32, b.shl(at, 2), align=4), I64)
        place = b.at(starts, b.shl(expert, 3))
        before = b.load(place, I64, align=8)
        b.store(b.add(before, 1), place, align=8)
        return before

    def count_one(at: Value, _: list[Value]) -> None:
        advance(at)

    def place_one(at: Value, _: list[Value]) -> None:
        b.store(b.ir.trunc(at, I32), order, b.shl(advance(at), 2), align=4)

    def total(expert: Value, carried: list[Value]) -> list[Value]:
        """Counts to starts."""
        place = b.at(starts, b.shl(expert, 3))
        found = b.load(place, I64, align=8)
        b.store(carried[0], place, align=8)
        return [b.add(carried[0], found)]

    with b.ir.if_then(b.ir.icmp_signed("==", tid, b.i64(0))):
        b.loop(0, experts, 1, [], lambda i, _: b.store(b.i64(0), starts, b.shl(i, 3), align=8))
        b.loop(0, count, 1, [], count_one)
        b.loop(0, experts, 1, [b.i64(0)], total)
        b.loop(0, count, 1, [], place_one)
    b.ir.ret_void()
    return function
