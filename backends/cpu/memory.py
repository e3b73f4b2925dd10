"""What a CPU engine takes, from its programs alone. The engine allocates by these very numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from briolette.compiler.codecs import codec_named, is_codec
from briolette.compiler.dims import evaluate, product
from briolette.compiler.ir import Module, topological
from briolette.compiler.pipeline import Form, form_named, optimise
from briolette.compiler.plan import Plan, plan
from briolette.compiler.rules.integers import Integers
from briolette.compiler.views import View, view_of

from ..base import Memory, Options, PlaneMemory, looked_up, stored_bytes
from .coded import GROUP, Coded
from .emit import Layout, Plane, layout_of
from .kernels.packed import FEW, ROWS
from .pack import packed_bytes
from .packing import PACKED
from .runtime_ir import CONTEXT_BYTES

DTYPES = {"f32": np.float32, "f16": np.uint16, "bf16": np.uint16}  # 16-bit planes are kept as bits
ALL_LOGITS_CHUNK = 64  # tokens a step when every token's logits are wanted: they are large
POINTER = 8
WHOLE = 2 * GROUP  # positions that coded planes hold a multiple of: all the scales of a ring are whole lines then

# Estimates, measured on x86-64 Linux as what a process has resident beside all that is planned exactly.
LIBRARIES = 60 << 20  # llvmlite, and what loading machine code touches of LLVM
COMPILING, COMPILING_NODE = 30 << 20, 24 << 10  # LLVM at work, and for each node of the program

# Which programs are compiled together, and the form of each. Decoding and prefill share kernels and are
# both wanted by any generation; every token's logits are wanted by evaluation, and of several sequences at once.
GROUPS = {"generate": ("decode", "prefill"), "evaluate": ("all",), "few": ("few",), "batch": ("batch",)}
GROUP_OF = {program: group for group, programs in GROUPS.items() for program in programs}
FORM = {"few": "all", "batch": "all"}  # where a program's form has another name
SMALL_BATCH = (
    4  # tokens that "few" takes; "batch", whose products are made of more rows at a time, takes longer for them
)


def form_of(name: str, options: Options) -> Form:
    """What is wanted of the compiler for a program: decode, prefill, all, few or batch."""
    bits = 8 if options.prefill == "fast" and name in ("prefill", "all") else 16
    tile = FEW if name == "few" else ROWS
    how = Integers(tuple(PACKED.items()), tile, bits, experts=options.weights == "packed")
    return form_named(FORM.get(name, name), options.cache, None if options.weights == "mapped" else how)


def rows_of(name: str, options: Options) -> int:
    """Tokens that a step of a program takes at most."""
    known = {"decode": 1, "few": SMALL_BATCH, "prefill": options.chunk}
    return known.get(name, min(ALL_LOGITS_CHUNK, options.chunk))


def positions_held(plane: Plane, options: Options) -> int:
    """All positions, or a ring that holds a window and the chunk being written behind those that stay. Codes come in
    whole groups of positions."""
    ring = options.context if plane.window is None else plane.window + options.chunk
    held = max(min(options.context, plane.sink + ring), plane.sink + 1)
    return -(-held // WHOLE) * WHOLE if plane.grouped else held


def token_bytes(plane: Plane) -> int:
    """What a position takes in a plane."""
    if is_codec(plane.dtype):
        return plane.heads * Coded(codec_named(plane.dtype), plane.size).ring_bytes(WHOLE) // WHOLE
    return plane.heads * plane.size * np.dtype(DTYPES[plane.dtype]).itemsize


def plane_memory(plane: Plane, options: Options) -> PlaneMemory:
    """A cache plane as it is allocated."""
    held = positions_held(plane, options)
    return PlaneMemory(plane.slot, plane.plane, token_bytes(plane), held, plane.window, options.sequences)


def arena_bytes(plans: Sequence[Plan]) -> int:
    """Programs that are compiled together never run at once: they share the largest arena."""
    return max(p.arena for p in plans)


def scratch_bytes(layout: Layout, threads: int) -> int:
    return max(1, layout.shared + layout.scratch * threads)


def table_bytes(layout: Layout) -> int:
    """Where native code finds weights and planes, and how many positions each plane holds."""
    return POINTER * (len(layout.weights) + 2 * len(layout.planes))


def result_bytes(result: View, rows: int) -> int:
    """What a step of a program writes its logits to: all that the program's output shows a part of."""
    return 4 * evaluate(product(result.base.shape), {"T": rows})


def memory(module: Module, cache_type: str) -> Callable[..., Memory]:
    """See `base.Backend.memory`. Programs are optimised once, whatever the options."""

    @cache
    def optimised(form: Form) -> Module:
        return optimise(module, form)

    @cache
    def planned(form: Form, rows: int) -> Plan:
        return plan(optimised(form), rows)

    @cache
    def laid_out(forms: tuple[tuple[Form, int], ...]) -> Layout:
        return layout_of([planned(*form) for form in forms])

    nodes = len(topological(module.roots))

    def of(options: Options, groups: Sequence[str] | None = None) -> Memory:
        groups = groups or (("generate", "few", "batch") if options.sequences > 1 else ("generate",))
        mapped: dict[str, int] = {}
        decoded: dict[str, int] = {}
        packed: dict[str, int] = {}
        planes: dict[tuple[int, str], PlaneMemory] = {}
        arena = scratch = results = 0
        tables = CONTEXT_BYTES
        for group in groups:
            wanted = replace(options, cache=cache_type)
            forms = tuple((form_of(name, wanted), rows_of(name, wanted)) for name in GROUPS[group])
            plans, layout = [planned(*form) for form in forms], laid_out(forms)
            arena += arena_bytes(plans)
            scratch += scratch_bytes(layout, options.threads)
            tables += table_bytes(layout)
            results = max(results, *(result_bytes(view_of(p.module.outputs[0]), p.rows) for p in plans))
            for weight in layout.weights:
                if weight.op == "weight":
                    mapped[weight["name"]] = stored_bytes(weight)
                elif weight.op == "pack":
                    packed[weight.args[0]["name"]] = packed_bytes(weight.args[0])
                else:
                    decoded[weight.args[0]["name"]] = 4 * math.prod(weight.shape)
            planes = {(p.slot, p.plane): plane_memory(p, options) for p in layout.planes} | planes
        return Memory(
            mapped,
            looked_up(module, packed),
            decoded,
            tuple(planes.values()),
            arena,
            scratch,
            tables,
            results,
            packed=packed,
            libraries=LIBRARIES,
            compiling=COMPILING + COMPILING_NODE * nodes,
        )

    return of
