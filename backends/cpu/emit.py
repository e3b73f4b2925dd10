"""A planned program to one LLVM module: kernels, each emitted once, and a function that calls them in waves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llvmlite import ir

from briolette.compiler.codecs import codec_named, is_codec
from briolette.compiler.dims import Affine, Dim, product
from briolette.compiler.ir import Node, users
from briolette.compiler.ops import inverse_frequencies
from briolette.compiler.plan import Plan, base, writes_cache
from briolette.compiler.views import view_of

from .. import reading
from .build import I64, PTR, VOID, Build, Target, Value
from .context import FIELDS, OF_OTHERS
from .describe import in_order, kernel_key, linear_spec, quantised, row_shape, row_stride, rows_spec, tiling
from .kernels import (
    activations,
    attend,
    attend_many,
    attend_one,
    attend_parts,
    encode,
    experts,
    hadamard,
    likeliest,
    linear,
    packed,
    rows,
    small,
)
from .marks import Marks, Unmarked
from .record import Plane
from .runtime_ir import emit_barrier

PAGE = 4096
KERNEL, GLUE = 2, 0  # LLVM's levels: of what loops over numbers, and of what only calls it
Done = Callable[[list[ir.Function], int], None]


@dataclass(frozen=True)
class Layout:
    """What programs expect to find in the tables they are given, in order."""

    weights: tuple[Node, ...]  # `weight`, or `dequant` of one: decoded to f32 at load
    planes: tuple[Plane, ...]
    scratch: int  # bytes per thread
    shared: int  # bytes of scratch that all threads use


def layout_of(plans: Sequence[Plan]) -> Layout:
    """The tables that programs of one model share."""
    weights: dict[Node, None] = {}
    planes: dict[tuple[int, str], Plane] = {}
    scratch = shared = 0
    for plan in plans:
        planes = {(p.slot, p.plane): p for p in planes_of(plan)} | planes
        for step in plan.steps:
            weights |= dict.fromkeys(source for arg in step.node.args if (source := stored(arg)) is not None)
            scratch = max(scratch, scratch_of(step.node))
            if step.node.op == "attend":
                shared = max(shared, attend_parts.layout(attend.spec_of(step.node))[1])
    return Layout(tuple(weights), tuple(planes.values()), _pages(scratch), _pages(shared))


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def stored(item: Node) -> Node | None:
    """The weight (or decoded small weight) under an operand, or None."""
    item = base(item)
    return item if item.op in ("weight", "dequant", "pack") else None


def scratch_of(item: Node) -> int:
    """Bytes of scratch a step needs for each thread."""
    if item.op == "attend":
        shapes = (attend_parts.own_layout,) if item.shape[0] == 1 else (attend_parts.own_layout, attend_many.layout)
        return max(layout(attend.spec_of(item))[1] for layout in shapes)
    if item.op == "top":
        return likeliest.list_bytes(item["k"])
    if item.op == "cache_write":
        return encode.scratch_bytes(item.shape[-1])
    if item.op != "fused":
        return 0
    spec = rows_spec(item) if item["family"] == "rows" else linear_spec(item)
    how = quantised(item)
    return spec.scratch_bytes() if how is None else experts.scratch_bytes(spec, *how[1:])


def planes_of(plan: Plan) -> list[Plane]:
    """The cache planes a program writes, in groups where one of a layer is in codes."""
    found = reading.planes_of(plan, Plane)
    coded = {plane.slot for plane in found if is_codec(plane.dtype)}
    return [replace(plane, grouped=plane.slot in coded and not plane.plane.startswith("near")) for plane in found]


class Emitter:
    """Emits programs into one module; equal kernels are shared among them. `profiled` programs take their time.

    done: told of functions that are complete, while others are not, and of LLVM's level for them.
    """

    def __init__(self, target: Target, profiled: bool = False, done: Done = lambda functions, level: None):
        self.target, self.profiled, self.done = target, profiled, done
        self.module = ir.Module()
        self.module.triple = target.triple
        self.kernels: dict[str, ir.Function] = {}
        self.barrier = emit_barrier(self.module, target)
        self.done([self.barrier], KERNEL)

    def program(self, name: str, plan: Plan, layout: Layout) -> None:
        """`void name(ptr context, i64 tid)`: one step, run by every thread."""
        program = _Program(self, name, plan, layout)
        program.emit()
        self.done([program.function], GLUE)

    def kernel(self, family: str, key: str, make: Callable[[str], ir.Function]) -> ir.Function:
        """The kernel of a key. It may need others of its own, which are complete when it is."""
        if key not in self.kernels:
            before = len(self.module.globals)
            self.kernels[key] = make(f"{family}.{hashlib.sha256(key.encode()).hexdigest()[:12]}")
            made = list(self.module.globals.values())[before:]
            self.done([item for item in made if isinstance(item, ir.Function) and item.blocks], KERNEL)
        return self.kernels[key]


class _Program:
    def __init__(self, emitter: Emitter, name: str, plan: Plan, layout: Layout):
        self.emitter, self.plan, self.layout = emitter, plan, layout
        self.target, self.module = emitter.target, emitter.module
        self.riding = riding(plan)
        self.listed = frozenset(item.args[0] for item in self.riding)
        self.weight_at = {item: i for i, item in enumerate(layout.weights)}
        self.plane_at = {(p.slot, p.plane): i for i, p in enumerate(layout.planes)}
        self.function = ir.Function(self.module, ir.FunctionType(VOID, [PTR, I64]), name)
        self.b = Build(ir.IRBuilder(self.function.append_basic_block("entry")), self.target)
        self.context, self.tid = self.function.args
        self.fields = {name: self.load_field(name) for name in FIELDS if name not in OF_OTHERS}
        self.marks = Marks(self.b, self.load_field("profile"), self.tid, plan) if emitter.profiled else Unmarked()

    def load_field(self, name: str) -> Value:
        return self.b.load(self.context, PTR if FIELDS[name].pointer else I64, FIELDS[name].offset, align=8)

    def emit(self) -> None:
        b = self.b
        scratch = b.add(b.mul(self.tid, self.fields["scratch_stride"]), self.layout.shared)
        self.scratch = b.at(self.fields["scratch"], scratch)
        self.index = self.wave = first = 0
        for index, step in enumerate(self.plan.steps):
            if step.wave != self.wave:
                self.meet()
                self.wave, first = step.wave, index
            self.index = index
            self.step(step.node, index - first)
            self.marks.kernel(index)
        self.meet()
        b.ir.ret_void()

    def meet(self) -> None:
        self.b.ir.call(self.emitter.barrier, [self.context])
        self.marks.barrier(self.wave)

    def meet_within(self) -> None:
        """A barrier between the parts of one step."""
        self.marks.kernel(self.index)
        self.meet()

    # --- operands -----------------------------------------------------------------------------------

    def size(self, dim: Dim, factor: int = 1) -> Value:
        """A size at run time, times a factor."""
        b = self.b
        if isinstance(dim, Affine):
            assert [name for name, _ in dim.terms] == ["T"], f"{dim} is not known to a CPU program"
            return b.add(b.mul(self.fields["rows"], dim.terms[0][1] * factor), dim.constant * factor)
        return b.i64(dim * factor)

    def pointer(self, item: Node) -> Value:
        """Where a value begins."""
        b = self.b
        if stored(item) is not None:
            return self.weight(item)
        view = view_of(item)
        found = self.base(view.base)
        return found if view.offset == 0 else b.at(found, self.size(view.offset, 4))

    def base(self, item: Node) -> Value:
        b = self.b
        if item.op in ("tokens", "position"):
            return self.fields["tokens" if item.op == "tokens" else "positions"]
        if item in self.plan.buffers:
            return b.at(self.fields["arena"], self.plan.buffers[item].offset)
        if writes_cache(item) is not None:
            return self.plane(item)[0]
        if item is not base(self.plan.module.outputs[0]):
            raise NotImplementedError(f"{item} lies nowhere: a kernel computes the first output of a program")
        return self.fields["out"]

    def weight(self, item: Node) -> Value:
        """A stored tensor, or where the part of it that is wanted begins."""
        b, source = self.b, base(item)
        table = b.load(self.fields["weights"], PTR, 8 * self.weight_at[source], align=8)
        if source.type.dtype == "f32":
            offset = view_of(item).offset
            assert isinstance(offset, int)
            return b.at(table, 4 * offset)
        skipped = 0
        while item.op == "slice":
            inner = item.args[0]
            if item["axis"] != len(item.shape) - 2:
                raise NotImplementedError(f"a slice of axis {item['axis']} of a weight {list(inner.shape)}")
            skipped += row_stride(inner) * item["start"]
            item = inner
        return b.at(table, skipped)

    def plane(self, item: Node) -> tuple[Value, Value]:
        """A cache plane's address and capacity."""
        write = writes_cache(item)
        assert write is not None
        index, b = self.plane_at[write["slot"], write["plane"]], self.b
        address = b.load(self.fields["planes"], PTR, 8 * index, align=8)
        return address, b.load(self.fields["capacities"], I64, 8 * index, align=8)

    # --- steps --------------------------------------------------------------------------------------

    def step(self, item: Node, turn: int) -> None:
        if item.op == "fused":
            {"rows": self.rows, "linear": self.linear, "experts": self.linear}[item["family"]](item, turn)
        else:
            getattr(self, item.op)(item)

    def call(self, function: ir.Function, *args: Value) -> None:
        self.b.ir.call(function, args)

    def linear(self, item: Node, turn: int) -> None:
        spec, how = replace(linear_spec(item), listed=item in self.listed), quantised(item)

        def make(name: str) -> ir.Function:
            if how is None:
                return linear.emit_linear(self.module, self.target, name, spec)
            if experts.grouped(spec):
                return experts.emit_grouped(self.module, self.target, name, spec, *how[1:])
            return packed.emit_packed(self.module, self.target, name, spec, *how)

        function = self.emitter.kernel(item["family"], f"{kernel_key(item, spec)}\n{how} {spec.listed}", make)
        leading = item.shape[:-2] if spec.experts else item.shape[:-1]
        count = self.size(product(leading))
        args = [self.pointer(arg) for arg in item.args]
        if spec.listed:
            opened = self.emitter.kernel("list", "open", lambda _: likeliest.open_list(self.module, self.target))
            self.call(opened, self.scratch, self.fields["likeliest"])
        self.call(function, *args, self.pointer(item), self.scratch, count, self.tid, self.fields["threads"])

    def rows(self, item: Node, turn: int) -> None:
        spec = rows_spec(item)
        function = self.emitter.kernel(
            "rows", kernel_key(item, spec), lambda name: rows.emit_rows(self.module, self.target, name, spec)
        )
        b, threads = self.b, self.fields["threads"]
        out, capacity = self.plane(item) if writes_cache(item) is not None else (self.pointer(item), b.i64(0))
        shape = row_shape(item)
        tokens = self.size(shape[0] if len(shape) > 1 else 1)
        # Kernels of a wave that have one row each begin with different threads.
        tid = self.tid if turn == 0 else b.ir.urem(b.add(self.tid, turn), threads)
        args = [self.pointer(arg) for arg in item.args]
        self.call(function, *args, out, capacity, self.fields["slots"], self.scratch, tokens, tid, threads)

    def quantize(self, item: Node) -> None:
        (x,) = item.args
        spec = activations.Quantize(*tiling(item))
        function = self.emitter.kernel(
            "quantize", f"{spec}", lambda name: activations.emit_quantize(self.module, self.target, name, spec)
        )
        sizes = (self.size(product(item.shape[:-1])), self.size(x.shape[-1]), self.b.i64(view_of(x).row_stride()))
        self.call(function, self.pointer(x), self.pointer(item), *sizes, self.tid, self.fields["threads"])

    def attend(self, item: Node) -> None:
        """Rows alone of their sequence, in parts that are put together between two barriers; then all others."""
        q, k, v, pos, *near = item.args
        spec, fields = attend.spec_of(item), self.fields

        def kernel(emit: Callable[[ir.Module, Target, str, attend.Attend], ir.Function]) -> ir.Function:
            name = emit.__name__.removeprefix("emit_")
            return self.emitter.kernel(name, f"{name} {spec}", lambda n: emit(self.module, self.target, n, spec))

        (keys, capacity), (values, _) = self.plane(base(k)), self.plane(base(v))
        out = self.pointer(item)
        given = (self.pointer(q), keys, values, self.pointer(pos), fields["slots"], out, self.scratch, capacity)
        given = (*given, self.size(q.shape[0]), self.tid, fields["threads"])
        if near:
            (near_keys, near_capacity), (near_values, _) = (self.plane(base(x)) for x in near)
            given = (*given, near_keys, near_values, near_capacity)
        self.call(kernel(attend_one.emit_attend_one), *given, fields["scratch"])
        self.meet_within()
        self.call(kernel(attend_parts.emit_merge), out, self.scratch, fields["scratch"], self.tid, fields["threads"])
        self.meet_within()
        if q.shape[0] != 1:
            self.call(kernel(attend_many.emit_attend_many), *given)

    def cache_write(self, item: Node) -> None:
        """Heads to codes: numbers are written by the kernels that make them."""
        x, pos = item.args
        in_order(x)
        codec, (_, heads, size) = codec_named(item.type.dtype), item.shape
        function = self.emitter.kernel(
            "encode",
            f"encode {codec} {heads} {size}",
            lambda name: encode.emit_encode(self.module, self.target, name, codec, heads, size),
        )
        given = (self.pointer(x), self.pointer(pos), *self.plane(item), self.fields["slots"], self.scratch)
        self.call(function, *given, self.size(x.shape[0]), self.tid, self.fields["threads"])

    def small(self, item: Node, key: str, make: Callable[[str], ir.Function]) -> None:
        function = self.emitter.kernel(item.op, f"{item.op} {key}", make)
        for arg in item.args:
            in_order(arg)
        args = [self.pointer(arg) for arg in item.args]
        count = self.size(item.shape[0] if item.op in ("rope_table", "group") else product(item.shape[:-1]))
        self.call(function, *args, self.pointer(item), count, self.tid, self.fields["threads"])

    def rope_table(self, item: Node) -> None:
        inverse = inverse_frequencies(item["theta"], item["dims"], 1.0)
        scale, half, has_freqs = item.get("scale", 1.0), item["dims"] // 2, len(item.args) > 1
        key = f"{item['theta']} {item['dims']} {scale} {has_freqs}"
        self.small(
            item,
            key,
            lambda name: small.emit_rope_table(self.module, self.target, name, half, has_freqs, inverse, scale),
        )

    def hadamard(self, item: Node) -> None:
        size, inverse = item.shape[-1], item.get("inverse", False)
        block = item.get("block") or size
        self.small(
            item,
            f"{size} {block} {inverse}",
            lambda name: hadamard.emit_hadamard(self.module, self.target, name, size, block, inverse),
        )

    def rotary_first(self, item: Node) -> None:
        given = (item.shape[-1], item["pairs"], item["half"], item.get("inverse", False), len(item.args) > 1)
        self.small(item, f"{given}", lambda name: small.emit_rotary_first(self.module, self.target, name, *given))

    def top(self, item: Node) -> None:
        if item in self.riding:
            self.likeliest(item)
            return
        n, k = item.args[0].shape[-1], item["k"]
        self.small(item, f"{n} {k}", lambda name: small.emit_top(self.module, self.target, name, n, k))

    def likeliest(self, item: Node) -> None:
        """Puts together what all threads kept of the values that they made, for a `top` and the `take` of it."""
        b, fields = self.b, self.fields
        merge = self.emitter.kernel("list", "merge", lambda _: likeliest.merge_lists(self.module, self.target))
        lists, values = b.at(fields["scratch"], self.layout.shared), self.pointer(self.riding[item])
        with b.ir.if_then(b.ir.icmp_signed("==", self.tid, b.i64(0))):
            self.call(merge, lists, self.pointer(item), values, fields["scratch_stride"], fields["threads"])

    def take(self, item: Node) -> None:
        if item in self.riding.values():
            return  # made with what it takes
        x, k = item.args[0], item.shape[-1]
        n, vector = x.shape[-1], len(x.shape) == 1
        self.small(
            item, f"{n} {k} {vector}", lambda name: small.emit_take(self.module, self.target, name, n, k, vector)
        )

    def group(self, item: Node) -> None:
        n = item["experts"]
        self.small(item, f"{n}", lambda name: experts.emit_group(self.module, self.target, name, n))

    def combine(self, item: Node) -> None:
        used, n = item.args[0].shape[-2:]
        self.small(item, f"{used} {n}", lambda name: small.emit_combine(self.module, self.target, name, used, n))


def riding(plan: Plan) -> dict[Node, Node]:
    """Each `top` of what a product makes of one row, with a `take` of the same, where nothing else reads that: they are
    found by its kernel meanwhile, which writes the values themselves only where they are wanted."""
    readers = users(plan.module.roots)
    values = {step.node.args: step.node for step in plan.steps if step.node.op == "take"}
    tops = [step.node for step in plan.steps if step.node.op == "top"]
    return {
        top: values[made, top]
        for top in tops
        if (made := top.args[0]).op == "fused"
        and made["family"] == "linear"
        and made.shape[0] == 1
        and made in plan.module.outputs
        and set(readers[made]) == {top, values.get((made, top))}
    }


def has_kernel(op: str) -> bool:
    """Whether an op that is in no fused kernel has one of its own."""
    return callable(getattr(_Program, op, None))
