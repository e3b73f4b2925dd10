"""Work along rows of the last axis: norms, softmax, residuals, rotation, embedding look-ups, cache writes.

A fused block is first written out in primitive ops. Every reduction (a sum of squares, a maximum)
needs a pass over the row; what several passes need is computed again from memory, which for a row
in L1 is cheaper than keeping it. The last pass stores the result, turns pairs (`rotate`) or writes
the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from briolette.backends import formats
from briolette.backends.reading import primitive
from briolette.compiler.ir import Block, Node, topological
from briolette.compiler.ops import attributes

from ..blocks import emit_span, unit
from ..build import F32, I32, I64, PTR, VOID, Build, Target, Value
from ..math import ELEMENTWISE
from . import ALIKE, Place, emit_cache_store, place_in_ring, split

REDUCTIONS = ("sum", "mean", "max")


@dataclass(frozen=True)
class Operand:
    """One argument: `role` is "row" (a row each), "vector" (one row for all), "scalar", "summary" (a number
    a row), "table" (angles, a row a token), "ids", "positions" or "weight" (an embedding table).
    `place` says which row of it is read: for a table of angles the token's, else the row's own. `row_bytes`:
    from one row of an embedding table to the next."""

    role: str
    place: Place = ALIKE
    format: str = "f32"
    row_bytes: int = 0


@dataclass(frozen=True)
class Rows:
    """A fused block over rows of `columns` values, `heads` rows a token. Where the result is `single`, it is
    one number a row."""

    block: Block
    operands: tuple[Operand, ...]
    columns: int
    heads: int
    single: bool = False

    def scratch_bytes(self) -> int:
        """Per thread: a dequantised embedding row for every table that is looked up in."""
        return 4 * self.columns * sum(o.role == "weight" for o in self.operands)


def emit_rows(module: ir.Module, target: Target, name: str, spec: Rows) -> ir.Function:
    """`void f(ptr operand..., ptr out, i64 capacity, ptr slots, ptr scratch, i64 tokens, i64 tid, i64 threads)`.

    out is f32 [tokens * heads, columns], or a cache plane [slots, heads, capacity, columns] in its element type, and
    `slots` i32 [tokens], the sequence of each token.
    """
    signature = ir.FunctionType(VOID, [PTR] * (len(spec.operands) + 1) + [I64, PTR, PTR, I64, I64, I64])
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    _Emitter(b, spec, function.args).run()
    b.ir.ret_void()
    return function


class _Emitter:
    def __init__(self, b: Build, spec: Rows, args: Sequence[Value]):
        self.b, self.spec = b, spec
        self.result = primitive(spec.block)
        self.write = self.result if self.result.op == "cache_write" else None
        self.root = self.write.args[0] if self.write is not None else self.result
        self.pointer = dict(zip(spec.block.params, args, strict=False))
        self.operand = dict(zip(spec.block.params, spec.operands, strict=True))
        self.out, self.capacity, self.slots, self.scratch, *counts = args[len(spec.operands) :]
        self.tokens, self.tid, self.threads = counts
        self.order = topological([self.root])
        self.constant: dict[Node, Value] = {}  # the same for every row: f32 scalars
        self.summary: dict[Node, Value] = {}  # one number a row: f32 scalars
        self.embedded: dict[Node, Value] = {}  # where an embedding row lies dequantised
        self.row: Value = None
        self.token: Value = None

    def run(self) -> None:
        b = self.b
        for param, operand in self.operand.items():
            if operand.role == "scalar":
                self.constant[param] = b.load(self.pointer[param], F32, align=4)
        first, last = split(b, b.mul(self.tokens, self.spec.heads), self.tid, self.threads)
        b.loop(first, last, 1, [], lambda row, _: self.one_row(row))

    def one_row(self, row: Value) -> None:
        b = self.b
        self.row = row
        self.token = row if self.spec.heads == 1 else b.ir.udiv(row, b.i64(self.spec.heads))
        self.summary = dict(self.constant)
        self.look_up()
        self.settle()
        pending = [item for item in self.order if item.op in REDUCTIONS]
        while pending:
            # A reduction can run once the reductions below it have; all that can, share a pass.
            ready = [r for r in pending if not any(other in topological(r.args) for other in pending)]
            self.reduce(ready)
            self.settle()
            pending = [r for r in pending if r not in ready]
        self.store_row()

    def look_up(self) -> None:
        """Dequantises the token's row of every embedding table into scratch."""
        b, columns = self.b, self.spec.columns
        for place, item in enumerate(n for n in self.order if n.op == "embed"):
            table, ids = item.args
            fmt = formats.get(self.operand[table].format)
            index = b.ir.sext(b.load(self.pointer[ids], I32, b.shl(self.row, 2), align=4), I64)
            source = b.at(self.pointer[table], b.mul(index, self.operand[table].row_bytes))
            to = b.at(self.scratch, 4 * columns * place)
            step = unit(fmt, b.lanes)
            whole = columns // step * step

            def spans(
                step: int, lanes: int, source: Value = source, to: Value = to, fmt: formats.Format = fmt
            ) -> Callable[..., None]:
                def emit(i: Value, _: list[Value]) -> None:
                    for j, values in enumerate(emit_span(b, fmt, source, i, step, lanes)):
                        b.store(values, to, b.add(b.shl(i, 2), 4 * lanes * j), align=4)

                return emit

            b.loop(0, whole, step, [], spans(step, b.lanes))
            b.loop(whole, columns, 1, [], spans(1, 1))
            self.embedded[item] = to

    # --- values ---------------------------------------------------------------------------------------

    def value(self, item: Node, column: Value, lanes: int, seen: dict[Node, Value]) -> Value:
        """`lanes` values of a node from `column` on, computed from memory and row summaries."""
        if item in seen:
            return seen[item]
        b = self.b
        if item.op == "const":
            found = b.splat(float(item["value"]), lanes)
        elif item in self.summary:
            found = b.splat(self.summary[item], lanes)
        elif item.op == "embed":
            found = b.load(self.embedded[item], b.vec(F32, lanes), b.shl(column, 2), align=4)
        elif item.op == "param":
            found = self.read(item, column, lanes)
        else:
            args = [self.value(arg, column, lanes, seen) for arg in item.args]
            found = ELEMENTWISE[item.op](b, *args, **attributes(item))
        seen[item] = found
        return found

    def read(self, param: Node, column: Value, lanes: int) -> Value:
        b, operand = self.b, self.operand[param]
        offset = b.shl(column, 2)
        if operand.role == "row":
            offset = b.add(offset, operand.place.offset(b, self.row))
        return b.load(self.pointer[param], b.vec(F32, lanes), offset, align=4)

    def settle(self) -> None:
        """Computes what is one number a row, such as a norm's factor, as far as its operands are known."""
        b = self.b
        for item in self.order:
            if item in self.summary or item.op in REDUCTIONS:
                continue
            if item.op == "param":
                if self.operand[item].role == "summary":
                    offset = self.operand[item].place.offset(b, self.row)
                    self.summary[item] = b.load(self.pointer[item], F32, offset, align=4)
            elif item.op in ELEMENTWISE and all(a.op == "const" or a in self.summary for a in item.args):
                args = [b.f32(a["value"]) if a.op == "const" else self.summary[a] for a in item.args]
                self.summary[item] = ELEMENTWISE[item.op](b, *args, **attributes(item))

    def columns(
        self, stop: int, body: Callable[[Value, int, list[Value]], list[Value] | None], init: Sequence[Value]
    ) -> list[Value]:
        """Runs `body(column, lanes, carried)` over columns: whole vectors, then one by one.

        `init` are vectors; the carried values of the rest are their first lanes, folded by the caller.
        """
        b = self.b
        whole = stop // b.lanes * b.lanes
        wide = b.loop(0, whole, b.lanes, list(init), lambda i, carried: body(i, b.lanes, carried))
        if whole == stop:
            return wide
        narrow = [b.slice(v, 0, 1) for v in init]
        return [*wide, *b.loop(whole, stop, 1, narrow, lambda i, carried: body(i, 1, carried))]

    # --- passes ---------------------------------------------------------------------------------------

    def reduce(self, items: list[Node]) -> None:
        """One pass over the row for reductions that do not wait for each other."""
        b, columns = self.b, self.spec.columns

        def body(column: Value, lanes: int, carried: list[Value]) -> list[Value]:
            seen: dict[Node, Value] = {}
            values = [self.value(item.args[0], column, lanes, seen) for item in items]
            return [
                larger(b, v, c) if i.op == "max" else b.add(c, v)
                for i, c, v in zip(items, carried, values, strict=True)
            ]

        init = [b.splat(-float("inf")) if item.op == "max" else b.zeros() for item in items]
        sums = self.columns(columns, body, init)
        for place, item in enumerate(items):
            combine = partial(larger, b) if item.op == "max" else b.add
            total, *rest = (b.reduce(v, combine) for v in sums[place :: len(items)])
            for part in rest:
                total = combine(total, part)
            self.summary[item] = b.div(total, b.f32(float(columns))) if item.op == "mean" else total

    def store_row(self) -> None:
        if self.root.op == "rotate":
            self.rotate()
            return
        if self.spec.single:
            self.b.store(self.summary[self.root], self.out, self.b.shl(self.row, 2), align=4)
            return

        def body(column: Value, lanes: int, carried: list[Value]) -> None:
            self.store(self.value(self.root, column, lanes, {}), column)

        self.columns(self.spec.columns, body, [])

    def rotate(self) -> None:
        """Pairs turned by the token's angles, cosine and sine side by side in the table."""
        b, (x, table) = self.b, self.root.args
        half = table.shape[1]
        assert isinstance(half, int)
        angles = b.at(self.pointer[table], self.operand[table].place.offset(b, self.token))

        def halves(column: Value, lanes: int, carried: list[Value]) -> None:
            """Pair i is (i, i + half)."""
            there = b.add(column, half)
            first, second = (self.value(x, at, lanes, {}) for at in (column, there))
            both = b.load(angles, b.vec(F32, 2 * lanes), b.shl(column, 3), align=4)
            cos, sin = b.shuffle(both, range(0, 2 * lanes, 2)), b.shuffle(both, range(1, 2 * lanes, 2))
            self.store(b.sub(b.mul(first, cos), b.mul(second, sin)), column)
            self.store(b.add(b.mul(second, cos), b.mul(first, sin)), there)

        def neighbours(pair: Value, lanes: int, carried: list[Value]) -> None:
            """Pair i is (2 i, 2 i + 1): `lanes` pairs are 2 * lanes values side by side."""
            column = b.shl(pair, 1)
            seen: dict[Node, Value] = {}
            values = self.value(x, column, 2 * lanes, seen)
            both = b.load(angles, b.vec(F32, 2 * lanes), b.shl(column, 2), align=4)
            cos, sin = (b.shuffle(both, [2 * (i // 2) + k for i in range(2 * lanes)]) for k in (0, 1))
            swapped = b.shuffle(values, [i ^ 1 for i in range(2 * lanes)])
            turned = b.mul(swapped, sin)
            signs = b.const(turned.type, [-1.0, 1.0] * lanes)
            self.store(b.add(b.mul(values, cos), b.mul(turned, signs)), column)

        self.columns(half, neighbours if self.root.get("interleaved") else halves, [])

        def copy(column: Value, lanes: int, carried: list[Value]) -> None:
            at = b.add(column, 2 * half)
            self.store(self.value(x, at, lanes, {}), at)

        self.columns(self.spec.columns - 2 * half, copy, [])

    def store(self, values: Value, column: Value) -> None:
        b, columns = self.b, self.spec.columns
        if self.write is None:
            b.store(values, self.out, b.shl(b.add(b.mul(self.row, columns), column), 2), align=4)
            return
        position, slot = (
            b.ir.sext(b.load(of, I32, b.shl(self.token, 2), align=4), I64)
            for of in (self.pointer[self.write.args[1]], self.slots)
        )
        ring = b.add(b.mul(slot, self.spec.heads), b.ir.urem(self.row, b.i64(self.spec.heads)))
        place = b.add(b.mul(ring, self.capacity), place_in_ring(b, position, self.capacity, self.write.get("sink", 0)))
        element = b.add(b.mul(place, columns), column)
        dtype = self.write.type.dtype
        emit_cache_store(b, dtype, values, self.out, b.shl(element, 2 if dtype == "f32" else 1))


def larger(b: Build, x: Value, y: Value) -> Value:
    """The larger float, NaN where either is."""
    return b.ir.select(b.ir.fcmp_unordered("uno", x, x), x, b.max(x, y))
