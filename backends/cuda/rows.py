"""Work along rows, a block of threads for each: norms, softmax, residuals, rotation, look-ups, numbers to the cache.

A fused block is written out in primitive ops. Each reduction is a pass over the row; what several passes need is
computed again from memory, which is cheaper than to keep it. The last pass stores.
"""

from __future__ import annotations

from briolette.compiler.dims import Dim
from briolette.compiler.ir import Block, Node, topological
from briolette.compiler.ops import attributes

from ..reading import primitive
from .blocks import format_name, format_source
from .expressions import expression
from .indexing import Axes, last_stride
from .source import Kernel
from .steps import Argument, Launch, Places, known, row_stride

REDUCTIONS = {"sum": "Sum", "mean": "Sum", "max": "Max"}
MOST_THREADS = 256


def rows_launch(item: Node, places: Places) -> tuple[Launch, Kernel]:
    """The launch of a fused node of the family `rows`."""
    return _Rows(item, places).launch()


class _Rows:
    def __init__(self, item: Node, places: Places):
        self.item, self.places = item, places
        self.block: Block = item["block"]
        result = primitive(self.block)
        self.write = result if result.op == "cache_write" else None
        self.quantise = result if result.op == "quantize" else None
        self.root = result.args[0] if result.op in ("cache_write", "quantize") else result
        self.order = topological([self.root])
        self.walked = self.walked_shape()
        self.columns = known(self.walked[-1])
        self.axes = Axes(self.walked[:-1])
        self.operand = dict(zip(self.block.params, item.args, strict=True))
        self.names = {param: f"p{i}" for i, param in enumerate(self.block.params)}
        self.threads = min(MOST_THREADS, -(-self.columns // 32) * 32)
        self.needs: dict[str, None] = {}
        self.arguments: list[Argument] = []
        self.parameters: list[str] = []
        self.head: list[str] = []
        self.sums: dict[Node, str] = {}

    def walked_shape(self) -> tuple[Dim, ...]:
        """The shape whose last axis is walked: the result's, or what is summed up to one number a row."""
        shape = self.root.shape or (1,)
        summed = {n.args[0].shape[-1] for n in self.order if n.op in REDUCTIONS} - {1}
        widths = summed | ({shape[-1]} - {1})
        assert len(widths) < 2, f"rows of {shape} that sum rows of {widths}"
        return (*shape[:-1], *(widths or {1}))

    def launch(self) -> tuple[Launch, Kernel]:
        for param in self.block.params:
            self.declare(param)
        store = self.store()
        reductions = [n for n in self.order if n.op in REDUCTIONS]
        lines = [*self.axes.declarations("(int)block.x"), *self.head]
        if reductions and self.threads > 32:
            lines.append("__shared__ float partial[32];")
        elif reductions:
            lines.append("float* partial = 0;")
        for item in reductions:
            lines += self.reduce(item)
        lines += self.rotated(store) if self.root.op == "rotate" else self.stored(store)
        if self.quantise is not None:
            how = attributes(self.quantise)
            kind = f"{self.columns}, {how['bits']}, {how['block']}"
            to = f"out + (i64)block.x * Integers<{kind}>::ROW_BYTES"
            lines += ["__syncthreads();", f"quantize<{kind}, {self.threads}>(values, {to});"]
        kernel = Kernel("rows", tuple(self.parameters), "\n".join(lines), self.threads, tuple(self.needs))
        return Launch(kernel.name, (self.axes.rows, 1, 1), self.threads, tuple(self.arguments)), kernel

    # --- operands ---

    def declare(self, param: Node) -> None:
        """A parameter's argument, and where its row begins."""
        arg, name = self.operand[param], self.names[param]
        readers = [n for n in self.block.order if param in n.args]
        kind = {n.op for n in readers if n.op == "embed" and n.args[0] is param}
        if kind:
            return self.declare_table(param, arg, name, next(n for n in readers if n.op == "embed"))
        if param.type.dtype == "i32":
            self.add(f"const int* {name}", self.places.pointer(arg))
            return None
        self.add(f"const float* {name}", self.places.pointer(arg))
        offset = self.axes.offset(arg) if param.shape else "0"
        if any(n.op == "rotate" and n.args[1] is param for n in readers):
            offset = f"(i64)a0 * {known(param.shape[1]) * 2}"
        if offset != "0":
            self.head.append(f"{name} += {offset};")
        return None

    def declare_table(self, param: Node, arg: Node, name: str, reader: Node) -> None:
        """An embedding table: `name` becomes the row of this id."""
        stored = param.type.dtype
        self.needs[format_source(stored)] = None
        ids = self.operand[reader.args[1]]
        staged = self.places.staged(arg, ids)
        self.add(f"const u8* {name}", staged or self.places.pointer(arg))
        place = self.axes.place(ids)  # rows that the host has gathered lie in order of the step's tokens
        row = place if staged else f"{self.names[reader.args[1]]}[{place}]"
        self.head.append(f"{name} += (i64)({row}) * {row_stride(arg)};")

    def add(self, declaration: str, argument: Argument) -> None:
        self.parameters.append(declaration)
        self.arguments.append(argument)

    # --- passes ---

    def value(self, item: Node, at: str) -> tuple[list[str], str]:
        """Statements, and the expression of an item's value at column `at`."""
        lines: list[str] = []
        done: dict[Node, str] = {}

        def of(n: Node) -> str:
            if n in done:
                return done[n]
            if n in self.sums:
                return self.sums[n]
            if n.op == "param":
                stride = last_stride(self.operand[n])
                return (
                    f"{self.names[n]}[{at}]"
                    if stride == 1
                    else f"{self.names[n]}[{at} * {stride}]"
                    if stride
                    else (f"{self.names[n]}[0]")
                )
            if n.op == "const":
                return expression(n, ())
            if n.op == "embed":
                found = f"element<{format_name(n.args[0].type.dtype)}>({self.names[n.args[0]]}, {at})"
            else:
                found = expression(n, [of(arg) for arg in n.args])
            done[n] = f"v{len(done)}"
            lines.append(f"const float {done[n]} = {found};")
            return done[n]

        result = of(item)
        return lines, result

    def reduce(self, item: Node) -> list[str]:
        name, how = f"r{len(self.sums)}", REDUCTIONS[item.op]
        lines, found = self.value(item.args[0], "i")
        self.sums[item] = name
        mean = f" / {self.columns}.0f" if item.op == "mean" else ""
        return [
            f"float {name} = {how}::none();",
            f"for (int i = threadIdx.x; i < {self.columns}; i += {self.threads}) {{",
            *(f"  {line}" for line in lines),
            f"  {name} = {how}::two({name}, {found});",
            "}",
            f"{name} = block_reduce<{how}, {self.threads}>({name}, partial){mean};",
        ]

    def stored(self, store: str) -> list[str]:
        single = self.root.shape[-1:] in ((), (1,))
        lines, found = self.value(self.root, "i")
        head = (
            "if (threadIdx.x == 0) {"
            if single
            else (f"for (int i = threadIdx.x; i < {self.columns}; i += {self.threads}) {{")
        )
        start = ["  const int i = 0;"] if single else []
        return [head, *start, *(f"  {line}" for line in lines), f"  {store.format(at='i', value=found)}", "}"]

    def rotated(self, store: str) -> list[str]:
        """Pairs of columns turned by the angles of the table, and those behind them as they are."""
        x, table = self.root.args
        half, interleaved = known(table.shape[1]), attributes(self.root)["interleaved"]
        first, second = ("2 * i", "2 * i + 1") if interleaved else ("i", f"i + {half}")
        one, a = self.value(x, "first")
        two, b = self.value(x, "second")
        angles = self.names[table]
        lines = [
            f"for (int i = threadIdx.x; i < {half}; i += {self.threads}) {{",
            f"  const int first = {first}, second = {second};",
            f"  const float cosine = {angles}[2 * i], sine = {angles}[2 * i + 1];",
            "  float a, b;",
            f"  {{ {' '.join(one)} a = {a}; }}",
            f"  {{ {' '.join(two)} b = {b}; }}",
            f"  {store.format(at='first', value='a * cosine - b * sine')}",
            f"  {store.format(at='second', value='b * cosine + a * sine')}",
            "}",
        ]
        if self.columns > 2 * half:
            rest, value = self.value(x, "i")
            lines += [
                f"for (int i = {2 * half} + threadIdx.x; i < {self.columns}; i += {self.threads}) {{",
                *(f"  {line}" for line in rest),
                f"  {store.format(at='i', value=value)}",
                "}",
            ]
        return lines

    def store(self) -> str:
        """The statement that keeps a value, to be given its column."""
        if self.write is not None:
            return self.cache_store()
        if self.quantise is not None:
            self.add("u8* out", self.places.pointer(self.item))
            self.head.append(f"__shared__ float values[{self.columns}];")
            return "values[{at}] = {value};"
        self.add("float* out", self.places.pointer(self.item))
        width = 1 if self.root.shape[-1:] in ((), (1,)) else self.columns
        return f"out[(i64)block.x * {width} + {{at}}] = {{value}};"

    def cache_store(self) -> str:
        """To a plane [sequences, heads, capacity, columns] of numbers."""
        assert self.write is not None
        heads, dtype = known(self.walked[1]), self.write.type.dtype
        plane, capacity = self.places.plane(self.item)
        positions = self.names[self.write.args[1]]
        stored = {"f32": "float"}.get(dtype, "u16")
        self.add(f"{stored}* plane", plane)
        self.add("const i64* capacity", capacity)
        self.add("const int* slots", Argument("slots"))
        place = f"place_in_ring({positions}[a0], *capacity, {attributes(self.write)['sink']})"
        self.head += [
            f"plane += (((i64)slots[a0] * {heads} + a1) * *capacity + {place}) * {self.columns};",
        ]
        return f"{dtype}::put(plane + {{at}}, {{value}});"
