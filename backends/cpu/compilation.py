"""From a module to the programs of a group: optimised and planned once a form, described in a record, emitted."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from llvmlite import ir

from briolette.compiler.dims import product
from briolette.compiler.garbage import uncollected
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.pipeline import Form, form_named, optimise
from briolette.compiler.plan import Plan, plan
from briolette.compiler.rules.integers import Integers
from briolette.compiler.text import print_module
from briolette.compiler.views import view_of

from ..base import LIKELIEST, Options
from ..reading import looked_up, token_ids, vocabulary_of
from .codegen import compiled, text_of
from .emit import KERNEL, Emitter, layout_of, riding
from .groups import GROUPS, rows_of
from .kernels.packed import FEW, ROWS
from .marks import emit_clock
from .packing import PACKED
from .record import Record, Stored
from .store import key_of
from .target import Target

FORM = {"few": "all", "batch": "all"}  # where a program's form has another name


def form_of(name: str, options: Options) -> Form:
    """What is wanted of the compiler for a program: decode, prefill, all, few or batch."""
    bits = 8 if options.prefill == "fast" and name in ("prefill", "all") else 16
    tile = FEW if name == "few" else ROWS
    how = Integers(tuple(PACKED.items()), tile, bits, experts=options.weights == "packed")
    form = form_named(FORM.get(name, name), options.cache, None if options.weights == "mapped" else how)
    return replace(form, likeliest=LIKELIEST) if name == "decode" else form


class Compilation:
    """The programs of a module, made as they are asked for."""

    def __init__(self, module: Module, target: Target):
        self.module, self.target = module, target
        self.vocabulary, self.token_ids = vocabulary_of(module), token_ids(module)
        self.optimised: dict[Form, Module] = {}
        self.planned: dict[tuple[Form, int], Plan] = {}

    def plan(self, program: str, options: Options) -> Plan:
        """A program's plan: of decode, prefill, all, few or batch."""
        wanted = form_of(program, options), rows_of(program, options)
        form, rows = wanted
        if wanted not in self.planned:
            if form not in self.optimised:
                self.optimised[form] = optimise(self.module, form)
            self.planned[wanted] = plan(self.optimised[form], rows)
        return self.planned[wanted]

    def plans(self, group: str, options: Options) -> dict[str, Plan]:
        return {program: self.plan(program, options) for program in GROUPS[group]}

    @uncollected()
    def record(self, group: str, options: Options) -> Record:
        return record_of(self.module, self.plans(group, options), self.target)

    @uncollected()
    def code(self, group: str, options: Options, profiled: bool = False) -> list[bytes]:
        return code_of(self.plans(group, options), self.target, profiled)


def watching(module: Module, wanted: tuple[Node, ...], options: Options) -> Plan:
    """The plan of a program that also gives the values of some nodes, in f32 as the program means it."""
    form = form_of("all", replace(options, weights="mapped"))
    watched = replace(module, outputs=(module.outputs[0], *wanted))
    return plan(optimise(watched, form), rows_of("all", options))


def record_of(module: Module, plans: Mapping[str, Plan], target: Target) -> Record:
    """The record of programs that are compiled together; these never run at once, and share the largest arena."""
    layout = layout_of(list(plans.values()))
    weights = tuple(map(_stored, layout.weights))
    packed = {weight.name for weight in weights if weight.how == "pack"}
    return Record(
        code=key_of(target, [f"{name} {p.rows}\n{print_module(p.module)}" for name, p in plans.items()]),
        results={name: _result(p.module.outputs[0]) for name, p in plans.items()},
        weights=weights,
        planes=layout.planes,
        scratch=layout.scratch,
        shared=layout.shared,
        arena=max(p.arena for p in plans.values()),
        likeliest=next((found for p in plans.values() if (found := _likeliest(p)) is not None), None),
        looked_up=looked_up(module, packed),
        vocabulary=vocabulary_of(module),
        token_ids=token_ids(module),
        nodes=len(topological(module.roots)),
    )


def _likeliest(planned: Plan) -> tuple[int, int, int] | None:
    """See `Record.likeliest`."""
    for ids, values in riding(planned).items():
        return planned.buffers[ids].offset, planned.buffers[values].offset, ids["k"]
    return None


def _stored(item: Node) -> Stored:
    weight = item if item.op == "weight" else item.args[0]
    shape = tuple(size for size in weight.shape if isinstance(size, int))
    return Stored(weight["name"], item.op, weight.type.dtype, shape)


def _result(output: Node) -> str:
    """The size of a first output, which lies by itself and in order: `rules.copies` sees to it."""
    view, size = view_of(output), product(output.shape)
    assert view.contiguous and view.offset == 0 and product(view.base.shape) == size
    return str(size)


def code_of(plans: Mapping[str, Plan], target: Target, profiled: bool = False) -> list[bytes]:
    """Machine code of programs that share a layout: the objects that together are all of it."""
    layout, objects = layout_of(list(plans.values())), list[Future[bytes]]()
    # One thread compiles while this one emits on: LLVM lets go of the interpreter's lock, and keeps one of its own.
    pool = ThreadPoolExecutor(1)

    def done(functions: list[ir.Function], level: int) -> None:
        objects.extend(pool.submit(compiled, text_of(function), target, level) for function in functions)

    try:
        emitter = Emitter(target, profiled, done)
        if profiled:
            done([emit_clock(emitter.module, target)], KERNEL)
        for name, planned in plans.items():
            emitter.program(name, planned, layout)
        return [made.result() for made in objects]
    finally:
        pool.shutdown(cancel_futures=True)
