"""Matrix products: weights in their stored format, f32 activations, f32 sums.

Three shapes of the same work. `single`: one input row, a stream over the weights, a few weight rows at a
time so that they share the loads of x. Otherwise a panel of weight rows is dequantised once into scratch
and multiplied with tiles of input rows. With expert ids, every (token, expert) pair is a single row
whose weights start at its expert's.

Products of the same input (gate and up) run together, and elementwise work on their results happens
in registers before the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from briolette.backends import formats
from briolette.compiler.ir import Block, Node
from briolette.compiler.ops import attributes

from ..blocks import emit_dot, emit_span, unit
from ..build import F32, I32, I64, PTR, VOID, Build, Target, Value
from ..math import ELEMENTWISE
from . import ALIKE, Place, smaller, split
from .likeliest import emit_offers

PREFETCH_AHEAD = 16384  # bytes; to L2, see facts on decode kernels
PANEL_ROWS = 16  # weight rows dequantised together in the form for many tokens


@dataclass(frozen=True)
class Operand:
    """One argument of a fused product.

    `role`: "x", "weight", "ids", "order" (of the ids, by expert), "row" (a value per output), "vector" (one per
    output column), "summary" (one per output row) or "scalar". Of weights: their format, and bytes from one row to
    the next and from one expert's to the next's.
    """

    role: str
    place: Place = ALIKE
    format: str = "f32"
    row_bytes: int = 0
    expert_bytes: int = 0


@dataclass(frozen=True)
class Linear:
    """A fused product: `block` as the compiler made it, one operand description per parameter."""

    block: Block
    operands: tuple[Operand, ...]
    inputs: int  # K
    outputs: int  # N
    single: bool
    experts: int = 0  # experts each token uses; 0 for plain products
    shared_input: bool = True  # whether a token's experts all read the same row
    listed: bool = False  # whether the largest results are wanted, in a list in scratch; all only where `out` is some

    @property
    def products(self) -> list[Node]:
        return [n for n in self.block.order if n.op in ("linear", "expert_linear")]

    def scratch_bytes(self) -> int:
        """Per thread: the dequantised panel."""
        return 0 if self.single or self.experts else 4 * PANEL_ROWS * self.inputs * len(self.products)


def emit_linear(module: ir.Module, target: Target, name: str, spec: Linear) -> ir.Function:
    """`void f(ptr operand..., ptr out, ptr scratch, i64 rows, i64 tid, i64 threads)`; out is f32 [rows, N]."""
    signature = ir.FunctionType(VOID, [PTR] * (len(spec.operands) + 2) + [I64] * 3)
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    emitter = Products(b, spec, function.args)
    if spec.experts:
        emitter.expert_rows()
    elif spec.single:
        emitter.single_row()
    else:
        emitter.panels()
    b.ir.ret_void()
    return function


class Products:
    """Emits a kernel's body: what its operands are, and what follows on the results of its products."""

    def __init__(self, b: Build, spec: Linear, args: Sequence[Value]):
        self.b, self.spec = b, spec
        self.operands = list(zip(spec.block.params, spec.operands, args, strict=False))
        self.out, self.scratch, self.rows, self.tid, self.threads = args[len(spec.operands) :]
        self.pointer = {param: arg for param, _, arg in self.operands}
        self.operand = {param: operand for param, operand, _ in self.operands}
        self.x = spec.products[0].args[0]
        self.weights = [p.args[1] for p in spec.products]
        self.group = 4 if len(self.weights) == 1 else 2  # weight rows that share the loads of x

    # --- one input row -----------------------------------------------------------------------------

    def single_row(self) -> None:
        zero = self.b.i64(0)
        self.stream(zero, self.pointer[self.x], [self.pointer[w] for w in self.weights], self.out)

    def expert_rows(self) -> None:
        """Every (token, expert) pair in turn, in order of their experts where that is given; threads share the output
        columns of each."""
        b, spec = self.b, self.spec

        def pair(at: Value, _: list[Value]) -> None:
            index = self.pair(at)
            row, expert = self.input_row(index), self.expert(index)
            x = b.at(self.pointer[self.x], b.mul(row, 4 * self.operand[self.x].place.stride))
            weights = [b.at(self.pointer[w], b.mul(expert, self.operand[w].expert_bytes)) for w in self.weights]
            self.stream(index, x, weights, b.at(self.out, b.mul(index, 4 * spec.outputs)))

        b.loop(0, b.mul(self.rows, spec.experts), 1, [], pair)

    def pair(self, at: Value) -> Value:
        """The (token, expert) pair to take as the `at`th, counted row by row."""
        order = next((self.pointer[param] for param, operand, _ in self.operands if operand.role == "order"), None)
        if order is None:
            return at
        return self.b.ir.sext(self.b.load(order, I32, self.b.shl(at, 2), align=4), I64)

    def input_row(self, pair: Value) -> Value:
        """The row of x that a (token, expert) pair multiplies."""
        return self.b.ir.sdiv(pair, self.b.i64(self.spec.experts)) if self.spec.shared_input else pair

    def expert(self, pair: Value) -> Value:
        ids = next(param for param, operand, _ in self.operands if operand.role == "ids")
        return self.b.ir.sext(self.b.load(self.pointer[ids], I32, self.b.shl(pair, 2), align=4), I64)

    def stream(self, row: Value, x: Value, weights: list[Value], out: Value) -> None:
        """out[n] = epilogue(w[n] . x) for this thread's share of the weight rows."""
        b, outputs, group = self.b, self.spec.outputs, self.group
        whole, rest = divmod(outputs, group)
        first, last = split(b, b.i64(whole), self.tid, self.threads)

        def rows(count: int) -> Callable[[Value, list[Value]], None]:
            def emit(n: Value, _: list[Value]) -> None:
                column = b.mul(n, group) if count == group else n
                sums = {
                    product: self.dots(x, w, weight, column, count)
                    for product, w, weight in zip(self.spec.products, self.weights, weights, strict=True)
                }
                self.store(self.epilogue(sums, row, column, count), out, column)

            return emit

        b.loop(first, last, 1, [], rows(group))
        if rest:
            # What does not fill a group is one row each, the last thread's.
            mine = b.ir.icmp_signed("==", self.tid, b.sub(self.threads, 1))
            start = b.ir.select(mine, b.i64(whole * group), b.i64(outputs))
            b.loop(start, b.i64(outputs), 1, [], rows(1))

    def dots(self, x: Value, w: Node, weight: Value, column: Value, count: int) -> Value:
        """Inner products of x with `count` weight rows from `column` on, as one vector."""
        b, inputs = self.b, self.spec.inputs
        fmt, row_bytes = formats.get(self.operand[w].format), self.operand[w].row_bytes
        base = b.at(weight, b.mul(column, row_bytes))
        step = unit(fmt, b.lanes)
        # Formats of plain numbers do little a turn: four vectors make the loop worth its counting.
        unrolled = 4 if fmt.quants is None and inputs >= 4 * step else 1
        turn = step * unrolled
        bytes_of = lambda elements: elements * fmt.bytes // fmt.elements  # noqa: E731
        whole = inputs // turn * turn

        def body(i: Value, carried: list[Value]) -> list[Value]:
            offset, accs = carried[0], carried[1:]
            b.prefetch(b.at(base, b.mul(offset, count)), PREFETCH_AHEAD, span=count * bytes_of(turn))
            here = b.at(x, b.shl(i, 2))
            rows = [[acc] for acc in accs]
            for u in range(unrolled):
                ptrs = [b.at(b.at(base, r * row_bytes + u * bytes_of(step)), offset) for r in range(count)]
                rows = emit_dot(b, fmt, ptrs, b.at(here, 4 * step * u), b.lanes, rows)
            return [b.add(offset, bytes_of(turn)), *(acc for row in rows for acc in row)]

        accs = b.loop(0, whole, turn, [b.i64(0), *[b.zeros()] * count], body)[1:]
        sums = across(b, accs)
        if whole < inputs:
            sums = b.add(sums, self.tail(fmt, base, row_bytes, x, whole, count))
        return sums

    def tail(self, fmt: formats.Format, base: Value, row_bytes: int, x: Value, start: int, count: int) -> Value:
        """The columns that fill no vector, one at a time; only plain numbers have such."""
        b = self.b

        def body(i: Value, accs: list[Value]) -> list[Value]:
            offset = b.mul(i, fmt.bytes)
            ptrs = [b.at(b.at(base, r * row_bytes), offset) for r in range(count)]
            rows = emit_dot(b, fmt, ptrs, b.at(x, b.shl(i, 2)), 1, [[acc] for acc in accs])
            return [acc for row in rows for acc in row]

        accs = b.loop(start, self.spec.inputs, 1, [b.zeros(1)] * count, body)
        return across(b, accs)

    # --- many input rows ---------------------------------------------------------------------------

    def panels(self) -> None:
        b, spec = self.b, self.spec
        count = (spec.outputs + PANEL_ROWS - 1) // PANEL_ROWS
        first, last = split(b, b.i64(count), self.tid, self.threads)

        def panel(index: Value, _: list[Value]) -> None:
            column = b.mul(index, PANEL_ROWS)
            left = b.sub(b.i64(spec.outputs), column)
            size = smaller(b, left, b.i64(PANEL_ROWS))
            for place, w in enumerate(self.weights):
                self.unpack(w, column, size, place)
            self.multiply(column, size)

        b.loop(first, last, 1, [], panel)

    def panel_row(self, place: int, row: Value) -> Value:
        start = 4 * PANEL_ROWS * self.spec.inputs * place
        return self.b.at(self.b.at(self.scratch, start), self.b.mul(row, 4 * self.spec.inputs))

    def unpack(self, w: Node, column: Value, size: Value, place: int) -> None:
        """Weight rows column .. column + size, dequantised into the panel."""
        b, inputs = self.b, self.spec.inputs
        fmt, row_bytes = formats.get(self.operand[w].format), self.operand[w].row_bytes
        step = unit(fmt, b.lanes)
        whole = inputs // step * step

        def one(r: Value, _: list[Value]) -> None:
            row = b.at(self.pointer[w], b.mul(b.add(column, r), row_bytes))
            to = self.panel_row(place, r)

            def span(i: Value, _: list[Value]) -> None:
                b.prefetch(b.at(row, b.ir.udiv(b.mul(i, fmt.bytes), b.i64(fmt.elements))), 4096, span=64)
                for j, values in enumerate(emit_span(b, fmt, row, i, step, b.lanes)):
                    b.store(values, to, b.add(b.shl(i, 2), 4 * b.lanes * j))

            def rest(i: Value, _: list[Value]) -> None:
                b.store(emit_span(b, fmt, row, i, 1, 1)[0], to, b.shl(i, 2))

            b.loop(0, whole, step, [], span)
            b.loop(whole, inputs, 1, [], rest)

        b.loop(0, size, 1, [], one)

    def multiply(self, column: Value, size: Value) -> None:
        """The panel with all input rows, in register tiles of tokens by weight rows."""
        b = self.b
        tokens = 4 if b.target.registers >= 32 else 2
        groups = b.mul(b.ir.sdiv(size, b.i64(4)), 4)
        exact = self.spec.outputs % 4 == 0

        def over_rows(t: Value, height: int) -> None:
            b.loop(0, groups, 4, [], lambda r, _: self.tile(t, height, column, r, 4))
            if not exact:
                b.loop(groups, size, 1, [], lambda r, _: self.tile(t, height, column, r, 1))

        whole = b.mul(b.ir.sdiv(self.rows, b.i64(tokens)), tokens)
        b.loop(0, whole, tokens, [], lambda t, _: over_rows(t, tokens))
        b.loop(whole, self.rows, 1, [], lambda t, _: over_rows(t, 1))

    def tile(self, t: Value, height: int, column: Value, r: Value, width: int) -> None:
        """`height` input rows by `width` weight rows."""
        b, spec = self.b, self.spec
        stride = 4 * self.operand[self.x].place.stride
        xs = [b.at(self.pointer[self.x], b.mul(b.add(t, h), stride)) for h in range(height)]
        sums: list[dict[Node, Value]] = [{} for _ in range(height)]
        for place, product in enumerate(spec.products):
            ws = [self.panel_row(place, b.add(r, i)) for i in range(width)]
            for h, result in enumerate(self.inner(xs, ws)):
                sums[h][product] = result
        for h in range(height):
            row, n = b.add(t, h), b.add(column, r)
            out = b.at(self.out, b.mul(row, 4 * spec.outputs))
            self.store(self.epilogue(sums[h], row, n, width), out, n)

    def inner(self, xs: list[Value], ws: list[Value]) -> list[Value]:
        """All inner products of f32 rows xs and ws: for each x a vector over ws."""
        b, inputs = self.b, self.spec.inputs
        width = len(ws)

        def body(lanes: int) -> Callable[[Value, list[Value]], list[Value]]:
            def emit(i: Value, accs: list[Value]) -> list[Value]:
                offset = b.shl(i, 2)
                left = [b.load(x, b.vec(F32, lanes), offset) for x in xs]
                right = [b.load(w, b.vec(F32, lanes), offset) for w in ws]
                return [b.fma(left[k // width], right[k % width], acc) for k, acc in enumerate(accs)]

            return emit

        whole = inputs // b.lanes * b.lanes
        count = len(xs) * width
        accs = b.loop(0, whole, b.lanes, [b.zeros()] * count, body(b.lanes))
        sums = [across(b, accs[h * width : (h + 1) * width]) for h in range(len(xs))]
        if whole < inputs:
            accs = b.loop(whole, inputs, 1, [b.zeros(1)] * count, body(1))
            rest = [across(b, accs[h * width : (h + 1) * width]) for h in range(len(xs))]
            sums = [b.add(s, r) for s, r in zip(sums, rest, strict=True)]
        return sums

    # --- results ------------------------------------------------------------------------------------

    def epilogue(self, sums: dict[Node, Value], row: Value, column: Value, count: int) -> Value:
        """The block's elementwise work on the results of one row, columns column .. column + count."""
        b = self.b
        values = dict(sums)

        def value(item: Node) -> Value:
            if item not in values:
                if item.op == "const":
                    values[item] = b.splat(float(item["value"]), count)
                elif item.op == "param":
                    values[item] = self.read(item, row, column, count)
                else:
                    args = [value(arg) for arg in item.args]
                    values[item] = ELEMENTWISE[item.op](b, *args, **attributes(item))
            return values[item]

        return value(self.spec.block.result)

    def read(self, param: Node, row: Value, column: Value, count: int) -> Value:
        b, operand, pointer = self.b, self.operand[param], self.pointer[param]
        if operand.role in ("scalar", "summary"):
            return b.splat(b.load(pointer, F32, operand.place.offset(b, row), align=4), count)
        offset = b.shl(column, 2)
        if operand.role != "vector":  # the input itself may be added to the product
            offset = b.add(offset, operand.place.offset(b, row))
        return b.load(pointer, b.vec(F32, count), offset, align=4)

    def store(self, values: Value, out: Value, column: Value) -> None:
        b, to = self.b, self.b.shl(column, 2)
        if not self.spec.listed:
            b.store(values, out, to, align=4)
            return
        emit_offers(b, self.scratch, values, column)
        with b.ir.if_then(b.ir.icmp_unsigned("!=", self.out, b.const(PTR, None))):
            b.store(values, out, to, align=4)


def across(b: Build, vectors: Sequence[Value]) -> Value:
    """The sum of each vector's lanes, as one vector (a power of two of them): halves are added side by side."""
    vectors = list(vectors)
    count, lanes = len(vectors), vectors[0].type.count
    if lanes < count:
        parts = [b.reduce_add(v) for v in vectors]
        result = b.undefined(b.vec(F32, count))
        for i, part in enumerate(parts):
            result = b.ir.insert_element(result, part, b.i32(i))
        return result
    part = lanes
    while len(vectors) > 1:
        half = part // 2
        # Each vector holds lanes/part partial groups; keep their first halves and their second halves apart.
        first = [g * part + i for g in range(lanes // part) for i in range(half)]
        lows = [*first, *(lanes + i for i in first)]
        highs = [*(i + half for i in first), *(lanes + i + half for i in first)]
        vectors = [
            b.add(b.shuffle(a, lows, c), b.shuffle(a, highs, c))
            for a, c in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        part = half
    total = vectors[0]
    while part > 1:
        half, groups = part // 2, total.type.count // part
        low = [g * part + i for g in range(groups) for i in range(half)]
        total = b.add(b.shuffle(total, low), b.shuffle(total, [i + half for i in low]))
        part = half
    return total
