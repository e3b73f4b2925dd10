"""Products with stored weights, and elementwise work on their results in the same kernel.

`matvec`: some lanes of a warp for each row of the weights, one row of activations at a time; of experts, one pair of a
token and an expert. `gemm`: tiles of many rows of activations, on tensor cores, for weights that are not kept in f32:
blocks in integers, plain numbers in f16. Products of the same input (gate and up) run together.
"""

from __future__ import annotations

from math import gcd

from briolette.compiler.dims import Affine, Dim
from briolette.compiler.ir import Block, Node
from briolette.compiler.ops import attributes
from briolette.compiler.plan import base, quantises
from briolette.compiler.views import view_of

from .. import formats
from .blocks import PLAIN, format_name, format_source
from .expressions import expression
from .indexing import Axes, last_stride
from .source import RESIDENT, Kernel, structure_name
from .steps import Argument, Launch, Parts, Places, known, row_stride

THREADS = 128
WARP = 32
TILE_ROWS = 64  # of activations, in `gemm`
PRODUCTS = ("linear", "expert_linear")


def product_launch(item: Node, places: Places, tiles: bool) -> tuple[Launch, Kernel]:
    """The launch of a fused node of the families `linear` and `experts`; tiles: whether f16 may be taken for it."""
    made = _Products(item, places)
    return made.gemm() if tiles and made.suits_tiles() else made.matvec()


class _Products:
    def __init__(self, item: Node, places: Places):
        self.item, self.places = item, places
        self.block: Block = item["block"]
        self.root = self.block.result
        self.products = [n for n in self.block.order if n.op in PRODUCTS]
        first = self.products[0]
        self.x, self.ids = first.args[0], (first.args[2] if first.op == "expert_linear" else None)
        self.columns, self.outputs = known(self.x.shape[-1]), known(self.root.shape[-1])
        self.operand = dict(zip(self.block.params, item.args, strict=True))
        self.names = {param: f"p{i}" for i, param in enumerate(self.block.params)}
        self.axes = Axes(self.root.shape[:-1])
        self.needs: dict[str, None] = {}
        self.parameters: list[str] = []
        self.arguments: list[Argument] = []
        for param in self.block.params:
            self.declare(param)
        self.add("float* out", self.places.pointer(self.item))

    def declare(self, param: Node) -> None:
        arg, name = self.operand[param], self.names[param]
        if param in {item.args[1] for item in self.products}:
            self.needs[format_source(param.type.dtype)] = None
            self.add(f"const u8* {name}", self.places.pointer(arg))
        elif param.type.dtype == "i32":
            self.add(f"const int* {name}", self.places.pointer(arg))
        elif param.type.dtype == "q8":
            self.add(f"const u8* {name}", self.places.pointer(arg))
        else:
            self.add(f"const float* {name}", self.places.pointer(arg))

    def add(self, declaration: str, argument: Argument) -> None:
        self.parameters.append(declaration)
        self.arguments.append(argument)

    # --- one row at a time ---

    def matvec(self) -> tuple[Launch, Kernel]:
        lanes = self.lanes()
        each = WARP // lanes * (THREADS // WARP)  # weight rows of a block of threads
        edge = self.outputs % each != 0
        lines = [
            *self.axes.declarations("(int)block.y"),
            f"const int lane = threadIdx.x % {lanes};",
            f"const int wanted = (int)block.x * {each} + (int)threadIdx.x / {lanes};",
            # Lanes beyond the last row work on it, too: all of a warp have to take part in sums.
            f"const int n = wanted < {self.outputs} ? wanted : {self.outputs - 1};"
            if edge
            else "const int n = wanted;",
            f"const {self.input_type()} x = {{{self.input_row()}}};",
        ]
        found: dict[Node, str] = {}
        for i, item in enumerate(self.products):
            weight = item.args[1]
            kind = format_name(weight.type.dtype)
            row = f"{self.names[weight]} + {self.expert(weight)}(i64)n * {row_stride(self.operand[weight])}"
            product = f"Product<{kind}, {self.columns}, {lanes}, {self.input_type()}>::of({row}, x, lane)"
            lines.append(f"const float s{i} = lanes_sum<{lanes}>({product});")
            found[item] = f"s{i}"
        lines.append("if (lane == 0 && wanted == n) {" if edge else "if (lane == 0) {")
        lines += [f"  {line}" for line in self.stored(found, "(int)block.y", "n")]
        lines.append("}")
        kernel = Kernel("matvec", tuple(self.parameters), "\n".join(lines), THREADS, tuple(self.needs))
        grid = (-(-self.outputs // each), self.axes.rows, 1)
        return Launch(kernel.name, grid, THREADS, tuple(self.arguments)), kernel

    def expert(self, weight: Node) -> str:
        """Bytes to the weights of a row's expert, with a plus behind them."""
        if self.ids is None:
            return ""
        chosen = f"{self.names[self.ids]}[{self.axes.place(self.operand[self.ids])}]"
        return f"(i64){chosen} * {self.expert_bytes(weight)} + "

    def expert_bytes(self, weight: Node) -> int:
        arg = self.operand[weight]
        return known(base(arg).shape[-2]) * row_stride(arg)

    def input_row(self) -> str:
        """The row of activations: of experts either the token's or the pair's own."""
        arg, name = self.operand[self.x], self.names[self.x]
        own = len(self.x.shape) == len(self.root.shape)
        if self.x.type.dtype == "q8":
            return f"{name} + (i64){'(int)block.y' if own else 'a0'} * {self.input_type()}::ROW_BYTES"
        axes = self.axes if own else Axes(self.axes.sizes[: len(self.x.shape) - 1])
        return f"{name} + {axes.offset(arg)}"

    def lanes(self) -> int:
        """Lanes that share a weight row: a whole warp unless that leaves more of them idle in the last round."""
        fmt = formats.get(self.products[0].args[1].type.dtype)
        turns = -(-self.columns // 4)
        if fmt.quants is not None:
            turns = self.columns // fmt.elements * max(1, fmt[fmt.quants.low].length // 16)
        return min((WARP, 16, 8), key=lambda lanes: (-(-turns // lanes) * lanes, -lanes))

    # --- tiles of rows ---

    def suits_tiles(self) -> bool:
        """Whether there are many rows, and weights and activations that tensor cores take."""
        narrow = all(item.args[1].type.dtype != "f32" for item in self.products)
        whole = self.columns % 32 == 0 and (self.x.type.dtype == "q8" or self.alignment(self.operand[self.x]) == 4)
        quantised = self.x.type.dtype == "q8" or all(i.args[1].type.dtype in PLAIN for i in self.products)
        # Pairs of a token and an expert are taken together in the order that the compiler has asked for.
        together = self.ids is None or (self.x.type.dtype == "q8" and len(self.products[0].args) > 3)
        return isinstance(self.axes.rows, Affine) and narrow and whole and quantised and together

    def gemm(self) -> tuple[Launch, Kernel]:
        width = 64 if len(self.products) == 1 else 32
        shape, rows = self.shape(width), self.axes.rows
        assert isinstance(rows, Affine)
        factor, constant = rows.terms[0][1], rows.constant
        self.add("const int* tokens", Argument("rows"))
        weights = ", ".join(self.names[item.args[1]] + self.of_expert(item.args[1]) for item in self.products)
        store = self.stored({item: f"s{i}" for i, item in enumerate(self.products)}, "row", "n")
        sums = [f"const float s{i} = tile.sums[{i}][m_tile][n_tile][part] * factor;" for i in range(len(self.products))]
        lines = [
            f"typedef {'GemmIntegers' if self.x.type.dtype == 'q8' else 'Gemm'}<{shape}> Tile;",
            "__shared__ Tile::Shared own;",
            f"const int all_rows = *tokens * {factor} + {constant}, first = (int)block.x * {width};",
            *(self.tile_of_expert() if self.ids is not None else self.tile_of_rows()),
            f"const int outputs = {self.outputs} - first;",
            f"const u8* const weights[] = {{{weights}}};",
            "Tile tile;",
            "tile.run(x, weights, first, outputs, own);",
            "tile.each(rows, outputs, [&](int near_row, int near_n, int m_tile, int n_tile, int part) {",
            f"  const int row = {'order[begin + near_row]' if self.ids is not None else 'begin + near_row'};",
            "  const int n = first + near_n;",
            "  const float factor = Tile::factor(near_row, own);",
            *(f"  {line}" for line in [*self.axes.declarations(), *sums, *store]),
            "});",
        ]
        kernel = Kernel(
            "gemm", tuple(self.parameters), "\n".join(lines), THREADS, tuple(self.needs), RESIDENT // THREADS
        )
        # Of each expert's tiles the last one may not be whole.
        spare = TILE_ROWS * self.experts if self.ids is not None else 0
        grid = (Parts(self.outputs, width), Parts(rows + spare, TILE_ROWS), 1)
        return Launch(kernel.name, grid, THREADS, tuple(self.arguments)), kernel

    @property
    def experts(self) -> int:
        return known(self.products[0].args[1].shape[0])

    def of_expert(self, weight: Node) -> str:
        """To the weights of a tile's expert."""
        return "" if self.ids is None else f" + (i64)expert * {self.expert_bytes(weight)}"

    def tile_of_rows(self) -> list[str]:
        """Rows that follow one another, `begin` the first of them."""
        name = self.names[self.x]
        bytes_ = f"{self.input_type()}::ROW_BYTES"
        if self.x.type.dtype != "q8":
            bytes_ = str(4 * view_of(self.operand[self.x]).row_stride())
        return [
            f"const int begin = (int)block.y * {TILE_ROWS}, rows = all_rows - begin;",
            f"const u8* x = (const u8*){name} + (i64)(begin + Tile::mine(rows)) * {bytes_};",
        ]

    def tile_of_expert(self) -> list[str]:
        """Pairs of one expert, `begin` the first of them in the order of experts."""
        assert self.ids is not None
        ids, order = self.names[self.ids], self.names[self.products[0].args[3]]
        own = len(self.x.shape) == len(self.root.shape)
        row = "pair" if own else f"(pair / {self.root.shape[-2]})"
        return [
            f"const int *ids = {ids}, *order = {order};",
            f"__shared__ int starts[{self.experts + 1}];",
            "int expert, begin, rows;",
            f"if (!expert_tile<{self.experts}, {TILE_ROWS}>("
            "ids, order, all_rows, (int)block.y, starts, expert, begin, rows)) return;",
            "const int pair = order[begin + Tile::mine(rows)];",
            f"const u8* x = {self.names[self.x]} + (i64){row} * {self.input_type()}::ROW_BYTES;",
        ]

    def shape(self, width: int) -> str:
        """The structure of what tiles are specialised to, among `needs`; its name."""
        integers = self.x.type.dtype == "q8"
        function, results = ("sixteen<{}>", "q, scale, offset") if integers else ("Halves<{}>::of", "out")
        taken = "u32 q[4], float& scale, float& offset" if integers else "u32 out[8]"
        loads = [
            f"    if (product == {i}) {function.format(format_name(item.args[1].type.dtype))}("
            f"w[{i}] + (i64)row * {row_stride(self.operand[item.args[1]])}, column, {results});"
            for i, item in enumerate(self.products)
        ]
        lines = [
            f"  static const int COLUMNS = {self.columns}, DEPTH = {64 if self.columns % 64 == 0 else 32};",
            f"  static const int WIDTH = {width}, PRODUCTS = {len(self.products)};",
            *(self.runs() if integers else ()),
            f"  typedef {self.input_type()} X;",
            "  static __device__ __forceinline__ void weight(",
            f"      const u8* const w[], int product, int row, int column, {taken}) {{",
            *loads,
            "  }",
        ]
        name = structure_name("shape", lines)
        self.needs["\n".join([f"struct {name} {{", *lines, "};"])] = None
        return name

    def runs(self) -> list[str]:
        """What `GemmIntegers` asks of the blocks of all products."""
        kinds = [formats.get(item.args[1].type.dtype) for item in self.products]
        offsets = any(kind.offsets or (kind.quants and kind.quants.bias) for kind in kinds)
        run = min(kind.group for kind in kinds)
        return [f"  static const int RUN = {run};", f"  static const bool OFFSETS = {str(bool(offsets)).lower()};"]

    # --- both ---

    def stored(self, found: dict[Node, str], row: str, column: str) -> list[str]:
        """The elementwise work on sums, and where its result goes."""
        lines: list[str] = []
        done = dict(found)

        def of(n: Node) -> str:
            if n not in done and n.op == "param":
                done[n] = self.read(n, column)
            elif n not in done:
                made = expression(n, [of(arg) for arg in n.args])
                done[n] = made if n.op == "const" else f"v{len(done)}"
                if n.op != "const":
                    lines.append(f"const float {done[n]} = {made};")
            return done[n]

        result = of(self.root)
        return [*lines, f"out[(i64){row} * {self.outputs} + {column}] = {result};"]

    def read(self, param: Node, column: str) -> str:
        """An operand of the elementwise work, at a row of which the axes are declared."""
        arg = self.operand[param]
        terms = [self.axes.offset(arg)] if param.shape else []
        stride = last_stride(arg)
        terms += [column if stride == 1 else f"{column} * {stride}"] if stride else []
        return f"{self.names[param]}[{' + '.join(term for term in terms if term != '0') or '0'}]"

    def input_type(self) -> str:
        """The C++ type that reads the activations."""
        arg = self.operand[self.x]
        if self.x.type.dtype == "q8":
            given = attributes(quantises(arg))
            return f"Integers<{self.columns}, {given['bits']}, {given['block']}>"
        return f"Floats<{self.alignment(arg)}>"

    def alignment(self, arg: Node) -> int:
        """A power of two of floats, up to four, that every row of an input begins at a multiple of."""
        view = view_of(arg)
        found = 4
        for size in (*view.strides[:-1], *_numbers(view.offset)):
            found = gcd(found, size)
        return found


def _numbers(dim: Dim) -> tuple[int, ...]:
    return (dim,) if isinstance(dim, int) else (dim.constant, *(factor for _, factor in dim.terms))
