"""Products with stored weights, and elementwise work on their results in the same kernel.

`matvec`: some lanes of a warp for each row of the weights, for one row of activations at a time; of experts, for one
pair of a token and an expert. Products of the same input (gate and up) run together.
"""

from __future__ import annotations

from math import gcd

from briolette.compiler.dims import Dim
from briolette.compiler.ir import Block, Node, topological
from briolette.compiler.ops import attributes
from briolette.compiler.plan import base
from briolette.compiler.views import view_of

from .. import formats
from .blocks import PLAIN, format_name, format_source
from .expressions import expression
from .indexing import Axes, last_stride
from .source import Kernel
from .steps import Argument, Launch, Places, known, row_stride

THREADS = 128
WARP = 32
PRODUCTS = ("linear", "expert_linear")


def product_launch(item: Node, places: Places) -> tuple[Launch, Kernel]:
    """The launch of a fused node of the families `linear` and `experts`."""
    return _Products(item, places).matvec()


class _Products:
    def __init__(self, item: Node, places: Places):
        self.item, self.places = item, places
        self.block: Block = item["block"]
        self.root = self.block.result
        self.products = [n for n in topological([self.root]) if n.op in PRODUCTS]
        self.first = self.products[0]
        self.x, self.ids = self.first.args[0], (self.first.args[2] if self.first.op == "expert_linear" else None)
        self.columns, self.outputs = known(self.x.shape[-1]), known(self.root.shape[-1])
        self.operand = dict(zip(self.block.params, item.args, strict=True))
        self.names = {param: f"p{i}" for i, param in enumerate(self.block.params)}
        self.axes = Axes(self.root.shape[:-1])
        self.needs: dict[str, None] = {}
        self.parameters: list[str] = []
        self.arguments: list[Argument] = []
        self.head: list[str] = []

    def add(self, declaration: str, argument: Argument) -> None:
        self.parameters.append(declaration)
        self.arguments.append(argument)

    def matvec(self) -> tuple[Launch, Kernel]:
        for param in self.block.params:
            self.declare(param)
        self.add("float* out", self.places.pointer(self.item))
        lanes = self.lanes()
        each = WARP // lanes * (THREADS // WARP)  # weight rows of a block of threads
        n = f"(int)blockIdx.x * {each} + (int)threadIdx.x / {lanes}"
        edge = self.outputs % each != 0
        lines = [
            *self.axes.declarations("(int)blockIdx.y"),
            *self.head,
            f"const int lane = threadIdx.x % {lanes};",
            f"const int wanted = {n};",
            # Lanes beyond the last row work on it, too: all of a warp have to take part in sums.
            f"const int n = wanted < {self.outputs} ? wanted : {self.outputs - 1};" if edge else "const int n = wanted;",
            f"const {self.input_type()} x = {{{self.names[self.x]}}};",
        ]
        found: dict[Node, str] = {}
        for i, item in enumerate(self.products):
            weight = item.args[1]
            kind = format_name(weight.type.dtype)
            row = f"{self.names[weight]} + (i64)n * {row_stride(self.operand[weight])}"
            product = f"Product<{kind}, {self.columns}, {lanes}, {self.input_type()}>::of({row}, x, lane)"
            lines.append(f"const float s{i} = lanes_sum<{lanes}>({product});")
            found[item] = f"s{i}"
        lines.append("if (lane == 0 && wanted == n) {" if edge else "if (lane == 0) {")
        lines += [f"  {line}" for line in self.stored(found, "(int)blockIdx.y", "n")]
        lines.append("}")
        kernel = Kernel("matvec", tuple(self.parameters), "\n".join(lines), THREADS, tuple(self.needs))
        grid = (-(-self.outputs // each), self.axes.rows, 1)
        return Launch(kernel.name, grid, THREADS, tuple(self.arguments)), kernel

    def stored(self, found: dict[Node, str], row: str, column: str) -> list[str]:
        """The elementwise work on sums, and where its result goes."""
        lines: list[str] = []
        done = dict(found)

        def of(n: Node) -> str:
            if n not in done and n.op == "param":
                stride = last_stride(self.operand[n])
                done[n] = f"{self.names[n]}[{f'{column} * {stride}' if stride > 1 else column if stride else 0}]"
            elif n not in done:
                made = expression(n, [of(arg) for arg in n.args])
                done[n] = made if n.op == "const" else f"v{len(done)}"
                if n.op != "const":
                    lines.append(f"const float {done[n]} = {made};")
            return done[n]

        result = of(self.root)
        return [*lines, f"out[(i64){row} * {self.outputs} + {column}] = {result};"]

    # --- operands ---

    def declare(self, param: Node) -> None:
        arg, name = self.operand[param], self.names[param]
        weights = {item.args[1] for item in self.products}
        if param in weights:
            self.needs[format_source(param.type.dtype)] = None
            self.add(f"const u8* {name}", self.places.pointer(arg))
            if self.ids is not None:
                expert = known(base(arg).shape[-2]) * row_stride(arg)
                chosen = f"{self.names[self.ids]}[{self.axes.place(self.operand[self.ids])}]"
                self.head.append(f"{name} += (i64){chosen} * {expert};")
        elif param is self.x:
            self.declare_input(param, arg, name)
        elif param.type.dtype == "i32":
            # An order is for kernels that take an expert's pairs together.
            if param is self.ids:
                self.add(f"const int* {name}", self.places.pointer(arg))
        else:
            self.add(f"const float* {name}", self.places.pointer(arg))
            offset = self.axes.offset(arg) if param.shape else "0"
            if offset != "0":
                self.head.append(f"{name} += {offset};")

    def declare_input(self, param: Node, arg: Node, name: str) -> None:
        """The row of activations: of experts either the token's or the pair's own."""
        axes = self.axes if len(param.shape) == len(self.root.shape) else Axes(self.axes.sizes[: len(param.shape) - 1])
        if param.type.dtype == "q8":
            self.add(f"const u8* {name}", self.places.pointer(arg))
            row = "(int)blockIdx.y" if axes is self.axes else "a0"
            self.head.append(f"{name} += (i64)({row}) * {self.input_type()}::ROW_BYTES;")
        else:
            self.add(f"const float* {name}", self.places.pointer(arg))
            offset = axes.offset(arg)
            if offset != "0":
                self.head.append(f"{name} += {offset};")

    def input_type(self) -> str:
        """The C++ type that reads the activations."""
        arg = self.operand[self.x]
        if self.x.type.dtype == "q8":
            given = attributes(arg)
            return f"Integers<{self.columns}, {given['bits']}, {given['block']}>"
        return f"Floats<{self.alignment(arg)}>"

    def alignment(self, arg: Node) -> int:
        """A power of two of floats, up to four, that every row of an input begins at a multiple of."""
        view = view_of(arg)
        found = 4
        for size in (*view.strides[:-1], *_parts(view.offset)):
            found = gcd(found, size)
        return found

    def lanes(self) -> int:
        """Lanes that share a weight row: a whole warp unless that leaves more of them idle in the last round."""
        fmt = formats.get(self.products[0].args[1].type.dtype)
        if fmt.name in PLAIN:
            turns = -(-self.columns // 4)
        else:
            low = fmt[fmt.quants.low] if fmt.quants else None
            assert low is not None
            turns = self.columns // fmt.elements * max(1, low.length // 16)
        return min((WARP, 16, 8), key=lambda lanes: (-(-turns // lanes) * lanes, -lanes))


def _parts(dim: Dim) -> tuple[int, ...]:
    return (dim,) if isinstance(dim, int) else (dim.constant, *(factor for _, factor in dim.terms))
