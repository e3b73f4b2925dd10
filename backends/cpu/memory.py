"""What a CPU engine takes, from the records of its programs. The engine allocates by these very numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..base import Memory, Options, PlaneMemory, Source
from .context import CONTEXT_BYTES
from .groups import rows_of
from .pack import packed_bytes
from .programs import programs_of

if TYPE_CHECKING:
    from briolette.compiler.ir import Module

# Estimates, measured on x86-64 Linux as what a process has resident beside all that is planned exactly.
LIBRARIES = 60 << 20  # llvmlite, and what loading machine code touches of LLVM
COMPILING, COMPILING_NODE = 30 << 20, 24 << 10  # LLVM at work, and for each node of the program


def memory(source: Source | Module, cache: str) -> Callable[..., Memory]:
    """See `base.Backend.memory`."""
    programs = programs_of(source)

    def of(options: Options, groups: Sequence[str] | None = None) -> Memory:
        groups = groups or (("generate", "few", "batch") if options.sequences > 1 else ("generate",))
        wanted = replace(options, cache=cache)
        records = [programs.record(group, wanted) for group in groups]
        weights = dict.fromkeys(weight for record in records for weight in record.weights)
        planes: dict[tuple[int, str], PlaneMemory] = {}
        rows: dict[str, int] = {}
        for record in records:
            planes = {(p.slot, p.plane): p.memory(options) for p in record.planes} | planes
            rows |= record.looked_up
        return Memory(
            mapped={w.name: w.file_bytes for w in weights if w.how == "weight"},
            rows=rows,
            decoded={w.name: w.f32_bytes for w in weights if w.how == "dequant"},
            planes=tuple(planes.values()),
            arena=sum(record.arena for record in records),
            scratch=sum(record.scratch_bytes(options.threads) for record in records),
            tables=CONTEXT_BYTES + sum(record.table_bytes for record in records),
            logits=4 * max(r.result_size(name, rows_of(name, wanted)) for r in records for name in r.results),
            packed={w.name: packed_bytes(w) for w in weights if w.how == "pack"},
            libraries=LIBRARIES,
            compiling=COMPILING + COMPILING_NODE * records[0].nodes,
            nodes=records[0].nodes,
        )

    return of
