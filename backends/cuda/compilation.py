"""From a module to programs for a device: optimised, planned, and written as launches and kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from briolette.compiler.dims import Dim, evaluate, product
from briolette.compiler.garbage import uncollected
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.pipeline import Form, form_named, optimise
from briolette.compiler.plan import Plan, plan
from briolette.compiler.rules.integers import Integers
from briolette.compiler.rules.quantised_rows import quantised_rows

from .. import formats
from ..base import ALL_LOGITS_CHUNK, Options
from ..reading import token_ids, vocabulary_of
from .emit import Emitter, Layout, layout_of
from .source import Kernel, Together, module_source
from .steps import Launch

# Programs that are compiled together: generation, every token's logits, tokens of several sequences.
GROUPS = (("decode", "prefill"), ("all",), ("batch",))
KERNELS_OF_UNIT = 4
FORM = {"batch": "all"}  # where a program's form has another name
# Formats whose products are made in integers, with the columns that rows must be a multiple of.
INTEGERS = tuple((name, max(fmt.elements, 32)) for name, fmt in formats.FORMATS.items() if fmt.quants is not None)


def form_of(program: str, options: Options) -> Form:
    """What is wanted of the compiler for a program."""
    bits = 8 if options.prefill == "fast" and program != "decode" else 16
    how = None if options.weights == "mapped" else Integers(INTEGERS, bits=bits, stored=True)
    return form_named(FORM.get(program, program), options.cache, how)


def rows_of(program: str, options: Options) -> int:
    """Tokens that a step of a program takes at most."""
    return {"decode": 1, "prefill": options.chunk}.get(program, min(ALL_LOGITS_CHUNK, options.chunk))


def groups_of(options: Options) -> tuple[tuple[str, ...], ...]:
    """The groups that generation takes: with several sequences, steps of tokens of several of them, too."""
    return GROUPS[:1] if options.sequences == 1 else (GROUPS[0], ("batch",))


@dataclass(frozen=True)
class Program:
    """The launches of a step, for at most `rows` tokens; `result`: the numbers that it writes."""

    launches: tuple[Launch, ...]
    rows: int
    result: Dim
    plan: Plan

    def result_size(self, rows: int) -> int:
        return evaluate(self.result, {"T": rows})


@dataclass(frozen=True)
class Compiled:
    """Programs that share their tables, and the kernels of all of them."""

    programs: Mapping[str, Program]
    layout: Layout
    kernels: tuple[Kernel | Together, ...]
    arena: int

    @property
    def source(self) -> str:
        return module_source(self.kernels)

    def units(self, most: int) -> list[tuple[str, list[str]]]:
        """The source in parts that can be compiled beside one another, each with the names of its kernels: as many as
        asked for, but none of only a few kernels, since all begin with the same library."""
        count = max(1, min(most, len(self.kernels) // KERNELS_OF_UNIT))
        parts = [self.kernels[i::count] for i in range(count)]
        return [(module_source(part), [kernel.name for kernel in part]) for part in parts]


class Compilation:
    """The programs of a module, planned as they are asked for."""

    def __init__(self, module: Module):
        self.module = module
        self.vocabulary, self.token_ids = vocabulary_of(module), token_ids(module)
        self.nodes = len(topological(module.roots))
        self.optimised: dict[Form, Module] = {}

    @uncollected()
    def compiled(self, options: Options, programs: Sequence[str]) -> Compiled:
        """Programs by their names."""
        return compiled({name: self.plan(name, options) for name in programs}, tiles=options.weights != "mapped")

    def plan(self, program: str, options: Options) -> Plan:
        form = form_of(program, options)
        if form not in self.optimised:
            self.optimised[form] = quantised_rows(optimise(self.module, form))
        return plan(self.optimised[form], rows_of(program, options))


def compiled(plans: Mapping[str, Plan], tiles: bool = False) -> Compiled:
    """Launches and kernels of planned programs; these never run at once, and share the largest arena. tiles: whether
    products of many rows may be made on tensor cores, in f16."""
    layout, kernels = layout_of(list(plans.values())), dict[str, Kernel | Together]()
    programs = {}
    for name, planned in plans.items():
        emitter = Emitter(planned, layout, tiles, mixed=name == "batch")
        launches = tuple(emitter.launches())
        kernels |= {kernel.name: kernel for kernel in emitter.kernels}
        programs[name] = Program(launches, planned.rows, product(planned.module.outputs[0].shape), planned)
    return Compiled(programs, layout, tuple(kernels.values()), max(p.arena for p in plans.values()))


def watching(module: Module, wanted: tuple[Node, ...], options: Options) -> Plan:
    """The plan of a program that also gives the values of some nodes, in f32 as the program means it."""
    form = form_of("all", replace(options, weights="mapped"))
    watched = replace(module, outputs=(module.outputs[0], *wanted))
    return plan(optimise(watched, form), rows_of("all", options))
