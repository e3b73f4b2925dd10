"""A planned program to a launch plan, and the kernels that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from briolette.compiler.dims import Dim, product
from briolette.compiler.ir import Node
from briolette.compiler.ops import attributes, inverse_frequencies
from briolette.compiler.plan import Plan, base, writes_cache
from briolette.compiler.views import view_of

from ..reading import planes_of
from .attend import attend_launches, encode_launch, scratch_bytes, signs_source
from .blocks import number, numbers
from .linear import product_launch
from .planes import DevicePlane
from .rows import rows_launch
from .source import Kernel, Together
from .steps import Argument, Launch, known, row_stride

Made = tuple[Launch, Kernel]
TOGETHER = ("rows", "matvec", "quantize")  # families whose bodies know their block by the name `block`
THREADS = 128


@dataclass(frozen=True)
class Layout:
    """What programs expect in the tables they are given, in order.

    weights: `weight` nodes, or `dequant` of one: decoded to f32 at load. staged: tables that stay in the host's memory,
    of which a step is given the rows of its tokens. scratch: bytes.
    """

    weights: tuple[Node, ...]
    staged: tuple[Node, ...]
    planes: tuple[DevicePlane, ...]
    scratch: int


def layout_of(plans: Sequence[Plan]) -> Layout:
    """The tables that programs of one model share."""
    readers: dict[Node, set[str]] = {}
    planes: dict[tuple[int, str], DevicePlane] = {}
    scratch = 0
    for plan in plans:
        planes = {(p.slot, p.plane): p for p in planes_of(plan, DevicePlane)} | planes
        for step in plan.steps:
            if step.node.op == "attend":
                scratch = max(scratch, scratch_bytes(step.node))
            for arg in step.node.args:
                source = base(arg)
                if source.op in ("weight", "dequant"):
                    readers.setdefault(source, set()).add(_reads(step.node, arg))
    staged = tuple(item for item, how in readers.items() if how == {"tokens"})
    weights = tuple(item for item in readers if item not in staged)
    return Layout(weights, staged, tuple(planes.values()), scratch)


def _reads(item: Node, arg: Node) -> str:
    """How a step reads a weight: "tokens" where it looks up rows by the step's token ids, else "all"."""
    if item.op != "fused" or item["family"] != "rows":
        return "all"
    block = item["block"]
    operand = dict(zip(block.params, item.args, strict=True))
    params = [param for param, given in operand.items() if given is arg]
    inside = block.order
    embeds = [n for n in inside if n.op == "embed" and n.args[0] in params]
    by_token = [n for n in embeds if base(operand[n.args[1]]).op == "tokens"]
    others = [n for n in inside if n not in embeds and set(params) & set(n.args)]
    return "tokens" if embeds and embeds == by_token and not others else "all"


def joined(made: Sequence[Made]) -> tuple[Launch, Kernel | Together]:
    """Launches of as many threads, of sizes that are known, as one."""
    if len(made) == 1:
        return made[0]
    grids = [(known(x), known(y), known(z)) for launch, _ in made for x, y, z in [launch.grid]]
    kernel = Together(tuple((kernel, grid) for (_, kernel), grid in zip(made, grids, strict=True)))
    arguments = tuple(argument for launch, _ in made for argument in launch.arguments)
    return Launch(kernel.name, (kernel.blocks, 1, 1), kernel.threads, arguments), kernel


class Emitter:
    """The launches of one program."""

    def __init__(self, plan: Plan, layout: Layout, tiles: bool = False, mixed: bool = False):
        """tiles: whether products of many rows may be made in f16; mixed: whether a step's rows may be of several
        sequences."""
        self.plan, self.layout, self.tiles, self.mixed = plan, layout, tiles, mixed
        self.weight_at = {item: i for i, item in enumerate(layout.weights)}
        self.staged_at = {item: i for i, item in enumerate(layout.staged)}
        self.plane_at = {(p.slot, p.plane): i for i, p in enumerate(layout.planes)}
        self.kernels: list[Kernel | Together] = []

    def launches(self) -> list[Launch]:
        """In an order in which each finds its operands made; `kernels` grows by what they call. Kernels of a wave do
        not wait for one another: those that can become one."""
        found: list[Launch] = []
        for parts in self.parts():
            launch, kernel = joined([made for _, made in parts])
            found.append(launch)
            self.kernels.append(kernel)
        return found

    def parts(self) -> Iterator[list[tuple[Node, Made]]]:
        """Of each launch, in order, what is joined in it: nodes, and what each would be by itself."""
        for _, steps in groupby(self.plan.steps, lambda step: step.wave):
            alone: list[list[tuple[Node, Made]]] = []
            beside: dict[int, list[tuple[Node, Made]]] = {}
            for step in steps:
                made = self.step(step.node)
                launch, kernel = made[0]
                if len(made) == 1 and kernel.family in TOGETHER and all(isinstance(n, int) for n in launch.grid):
                    beside.setdefault(launch.threads, []).append((step.node, made[0]))
                else:
                    alone += [[(step.node, one)] for one in made]
            yield from (*alone, *beside.values())

    def step(self, item: Node) -> list[Made]:
        if item.op == "fused":
            rows = item["family"] == "rows"
            return [rows_launch(item, self) if rows else product_launch(item, self, self.tiles)]
        if item.op == "attend":
            return attend_launches(item, self, self.tiles, self.mixed)
        if item.op == "cache_write":
            return [encode_launch(item, self)]
        made: Callable[[Node], Made] = getattr(self, item.op)
        return [made(item)]

    # --- places ---

    def pointer(self, item: Node) -> Argument:
        """See `steps.Places`."""
        source = base(item)
        if source.op in ("weight", "dequant"):
            return Argument("weights", self.weight_at[source], self.skipped(item))
        if source.op in ("tokens", "position"):
            return Argument("tokens" if source.op == "tokens" else "positions", 0, view_of(item).offset * 4)
        offset = view_of(item).offset * 4
        if source in self.plan.buffers:
            return Argument("arena", 0, offset + self.plan.buffers[source].offset)
        assert source is base(self.plan.module.outputs[0]), f"{item} lies nowhere"
        return Argument("out", 0, offset)

    def skipped(self, item: Node) -> Dim:
        """Bytes before the part of a stored weight that is wanted."""
        if base(item).type.dtype == "f32":
            return view_of(item).offset * 4
        skipped = 0
        while item.op == "slice":
            inner = item.args[0]
            assert item["axis"] == len(item.shape) - 2, f"a slice of axis {item['axis']} of a stored weight"
            skipped += row_stride(inner) * item["start"]
            item = inner
        return skipped

    def plane(self, item: Node) -> tuple[Argument, Argument]:
        """See `steps.Places`."""
        write = writes_cache(item)
        assert write is not None
        index = self.plane_at[write["slot"], write["plane"]]
        return Argument("planes", index), Argument("capacities", 0, 8 * index)

    def staged(self, weight: Node, ids: Node) -> Argument | None:
        """See `steps.Places`."""
        index = self.staged_at.get(base(weight))
        return None if index is None else Argument("staged", index, view_of(ids).offset * row_stride(weight))

    # --- ops that have kernels of their own ---

    def call(
        self, item: Node, rows: Dim, given: dict[str, Argument], body: str, *needs: str, threads: int = THREADS
    ) -> Made:
        kernel = Kernel(item.op, tuple(given), body, threads, needs)
        return Launch(kernel.name, (rows, 1, 1), threads, tuple(given.values())), kernel

    def rope_table(self, item: Node) -> Made:
        pos, *freqs = item.args
        theta, dims = item["theta"], item["dims"]
        inverse = inverse_frequencies(theta, dims, 1.0)
        name = f"inverse_{dims}_{theta:g}".replace(".", "_").replace("+", "").replace("-", "_")
        need = f"__device__ const float {name}[{len(inverse)}] = {{{numbers(inverse)}}};"
        given = {"const int* positions": self.pointer(pos)}
        if freqs:
            given["const float* factors"] = self.pointer(freqs[0])
        given["float* out"] = self.pointer(item)
        template = f"rope_table<{len(inverse)}, {'true' if freqs else 'false'}>"
        factors = "factors" if freqs else "0"
        body = f"{template}(positions, {factors}, {name}, {number(attributes(item)['scale'])}, out);"
        return self.call(item, pos.shape[0], given, body, need)

    def hadamard(self, item: Node) -> Made:
        (x,), size = item.args, known(item.shape[-1])
        width = item.get("block") or size
        given = {"const float* x": self.pointer(x), "float* out": self.pointer(item)}
        template = f"hadamard<{size}, {width}, {'true' if item.get('inverse') else 'false'}>"
        body = f"__shared__ float values[{size}];\n{template}(x, signs_{size}, out, values);"
        rows = product(item.shape[:-1])
        return self.call(item, rows, given, body, signs_source(size), threads=min(THREADS, max(32, size // 2)))

    def rotary_first(self, item: Node) -> Made:
        x, *factors = item.args
        given = {"const float* x": self.pointer(x)}
        if factors:
            given["const float* factors"] = self.pointer(factors[0])
        given["float* out"] = self.pointer(item)
        inverse, has = (str(bool(flag)).lower() for flag in (item.get("inverse"), factors))
        template = f"rotary_first<{known(item.shape[-1])}, {item['pairs']}, {item['half']}, {inverse}, {has}>"
        return self.call(item, product(item.shape[:-1]), given, f"{template}(x, {'factors' if factors else '0'}, out);")

    def quantize(self, item: Node) -> Made:
        (x,), how = item.args, attributes(item)
        columns, stride = known(x.shape[-1]), view_of(x).row_stride()
        given = {"const float* x": self.pointer(x), "u8* out": self.pointer(item)}
        threads = min(256, 32 * (columns // how["block"]))
        kind = f"{columns}, {how['bits']}, {how['block']}"
        to = f"out + (i64)block.x * Integers<{kind}>::ROW_BYTES"
        body = f"quantize<{kind}, {threads}>(x + (i64)block.x * {stride}, {to});"
        return self.call(item, product(item.shape[:-1]), given, body, threads=threads)

    def top(self, item: Node) -> Made:
        (x,) = item.args
        given = {"const float* x": self.pointer(x), "int* ids": self.pointer(item)}
        body = f"top<{known(x.shape[-1])}, {item['k']}>(x, ids);"
        return self.call(item, product(item.shape[:-1]), given, body, threads=32)

    def take(self, item: Node) -> Made:
        x, ids = item.args
        count, n = known(item.shape[-1]), known(x.shape[-1])
        given = {
            "const float* x": self.pointer(x),
            "const int* ids": self.pointer(ids),
            "float* out": self.pointer(item),
        }
        row = "0" if len(x.shape) == 1 else f"(i64)block.x * {n}"
        body = (
            f"for (int i = threadIdx.x; i < {count}; i += 32) {{\n"
            f"  const i64 at = (i64)block.x * {count} + i;\n  out[at] = x[{row} + ids[at]];\n}}"
        )
        return self.call(item, product(item.shape[:-1]), given, body, threads=32)

    def group(self, item: Node) -> Made:
        (ids,), experts = item.args, item["experts"]
        given = {
            "const int* ids": self.pointer(ids),
            "const int* rows": Argument("rows"),
            "int* order": self.pointer(item),
        }
        each = product(ids.shape[1:])
        sizes = f"{experts}, {THREADS // 32}"
        body = f"__shared__ GroupShared<{sizes}> own;\ngroup<{sizes}>(ids, rows, {each}, order, own);"
        return self.call(item, 1, given, body)

    def combine(self, item: Node) -> Made:
        x, w = item.args
        used, n = known(x.shape[-2]), known(x.shape[-1])
        given = {"const float* x": self.pointer(x), "const float* w": self.pointer(w), "float* out": self.pointer(item)}
        body = (
            f"for (int i = threadIdx.x; i < {n}; i += {THREADS}) {{\n"
            "  float sum = 0.0f;\n"
            f"  for (int u = 0; u < {used}; u++) {{\n"
            f"    const i64 pair = (i64)block.x * {used} + u;\n"
            f"    sum = fmaf(w[pair], x[pair * {n} + i], sum);\n"
            "  }\n"
            f"  out[(i64)block.x * {n} + i] = sum;\n}}"
        )
        return self.call(item, product(item.shape[:-1]), given, body)


def has_kernel(op: str) -> bool:
    """Whether an op that is in no fused kernel has one of its own."""
    return op in ("attend", "cache_write") or callable(getattr(Emitter, op, None))
