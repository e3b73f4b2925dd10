"""The CPU engine: native programs, weights packed or mapped, KV caches, and the threads that run them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..base import F32Array, Options, Source, TokenRows, Weights, checked, checked_rows
from ..planes import Rings
from .context import CONTEXT_BYTES
from .groups import GROUP_OF, GROUPS, batched, rows_of
from .jit import Library, compile_object
from .memory import memory
from .pack import Packed, aligned, decoded, whole
from .profile import Clock, Profile
from .programs import programs_of
from .record import DTYPES, Plane, Record, Stored
from .store import joined, kept, key_of, parted
from .target import Target
from .threads import Team

if TYPE_CHECKING:  # what is kept from an earlier run needs no compiler
    from briolette.compiler.ir import Module, Node
    from briolette.compiler.plan import Plan

__all__ = ["GROUPS", "CpuEngine", "compile", "memory"]

name = "cpu"


class _Group:
    """Programs in one object file, and the tables and memory they are given."""

    def __init__(self, record: Record, library: Library, engine: CpuEngine, profiled: bool = False):
        self.record, self.library, self.profiled = record, library, profiled
        self.addresses = {name: library.address(name) for name in record.results}
        self.arena = aligned(record.arena)
        self.scratch = aligned(record.scratch_bytes(engine.options.threads))
        self.weights = np.array([engine.address_of(w) for w in record.weights], np.uint64)
        self.fields = {
            "arena": self.arena.ctypes.data,
            "weights": self.weights.ctypes.data,
            "scratch": self.scratch.ctypes.data,
            "scratch_stride": record.scratch,
            **engine.cache_tables(record.planes),
        }


class CpuEngine:
    """Sequences of one model on the CPU.

    Programs are compiled when first needed (from the object cache where possible): "decode" takes one
    token, "prefill" up to `options.chunk` and gives the last one's logits, "all" gives every token's, "few" and
    "batch" those of tokens of several sequences.
    Several Python threads may use one engine; their steps take turns.
    """

    def __init__(self, source: Source | Module, weights: Weights, options: Options, target: Target | None = None):
        self.programs = programs_of(source, target)
        self.target = self.programs.target
        self.weights, self.options = weights, options
        self.context = aligned(CONTEXT_BYTES)
        self.planes: dict[tuple[int, str], _Plane] = {}
        self.rings = Rings(options)
        self.decoded: dict[str, F32Array] = {}
        self.packed = Packed(weights, self.target, options.threads)
        self.kept: list[NDArray[np.uint8]] = []  # the mapped tensors that native code points into
        self.tables: list[NDArray[np.generic]] = []  # addresses and capacities of planes
        self.groups: dict[str, _Group] = {}
        self.profiled_groups: dict[str, _Group] = {}
        self.profiles: dict[str, Profile] | None = None  # by program, while they are taken
        runtime = Library([kept(f"{key_of(self.target, ['runtime'])}.o", self._compile_runtime)], self.target)
        entries = runtime.address("worker"), runtime.address("start")
        self.team = Team(self.context.ctypes.data, options.threads, *entries, keep=[self.context, runtime])
        weakref.finalize(self, self.team.dismiss)
        if options.weights == "packed":
            weights.scattered()

    @property
    def vocabulary(self) -> int:
        """See `base.Engine.vocabulary`."""
        return self.programs.vocabulary

    @property
    def token_ids(self) -> int:
        """How many tokens the model knows."""
        return self.programs.token_ids

    @property
    def allocated(self) -> dict[str, int]:
        """See `base.Engine.allocated`."""
        groups = [*self.groups.values(), *self.profiled_groups.values()]
        tables = sum(group.weights.nbytes for group in groups) + sum(table.nbytes for table in self.tables)
        return {
            "decoded": sum(array.nbytes for array in self.decoded.values()),
            "packed": self.packed.nbytes,
            "kv": sum(plane.memory.nbytes for plane in self.planes.values()),
            "arena": sum(group.arena.nbytes for group in groups),
            "scratch": sum(group.scratch.nbytes for group in groups),
            "tables": tables + self.context.nbytes,
        }

    def prepare(self) -> None:
        """See `base.Engine.prepare`."""
        self.group("generate")

    def close(self) -> None:
        """Ends the worker threads; the engine cannot be used after."""
        self.team.close()

    # --- running ------------------------------------------------------------------------------------

    def step(self, tokens: Sequence[int], start: int, logits: str = "last", sequence: int = 0) -> F32Array:
        """See `base.Engine.step`."""
        rows = checked(tokens, start, self.token_ids, self.options, sequence)
        with self.team.mine():
            if len(rows) == 1:
                return self._run("decode", rows)
            if logits == "all":
                return self._every("all", rows)
            chunk = self.options.chunk
            for at in range(0, len(rows), chunk):
                result = self._run("prefill", rows.part(at, chunk))
            return result

    def likeliest(
        self, token: int, position: int, count: int, sequence: int = 0
    ) -> tuple[NDArray[np.int32], F32Array] | None:
        """See `base.TellsLikeliest`."""
        rows = checked([token], position, self.token_ids, self.options, sequence)
        with self.team.mine():
            loaded = self.group("generate")
            if loaded.record.likeliest is None or not 0 < count <= loaded.record.likeliest[-1]:
                return None
            self._call(loaded, "decode", rows, likeliest=count)
            ids, values, _ = loaded.record.likeliest
            found = loaded.arena[ids : ids + 4 * count].view(np.int32)
            order = found.argsort()
            return found[order], loaded.arena[values : values + 4 * count].view(np.float32)[order]

    def batch(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> F32Array:
        """See `base.Engine.batch`."""
        rows = checked_rows(tokens, positions, sequences, self.token_ids, self.options)
        with self.team.mine():
            if len(rows) == 1:
                return self._run("decode", rows)
            return self._every(batched(len(rows)), rows)

    def _every(self, program: str, rows: TokenRows) -> F32Array:
        """Every token's logits."""
        chunk, found = rows_of(program, self.options), np.empty((len(rows), self.vocabulary), np.float32)
        for at in range(0, len(rows), chunk):
            self._run(program, rows.part(at, chunk), found[at : at + chunk])
        return found

    def values(
        self, tokens: Sequence[int], wanted: Sequence[Node], last: Mapping[Node, int] | None = None
    ) -> list[NDArray[Any]]:
        """See `base.Engine.values`."""
        from .compilation import code_of, record_of, watching

        given, chunk = checked(tokens, 0, self.token_ids, self.options), rows_of("all", self.options)
        module = self.programs.source.module
        planned = {"values": watching(module, tuple(wanted), self.options)}
        record = record_of(module, planned, self.target)
        code = parted(kept(f"{record.code}.o", lambda: joined(code_of(planned, self.target))))
        parts = []
        with self.team.mine():
            loaded = _Group(record, Library(code, self.target), self)
            self.team.keep.append(loaded.library)
            for at in range(0, len(given), chunk):
                part = given.part(at, chunk)
                out = self._call(loaded, "values", part)
                found = _watched(planned["values"], loaded.arena, out, len(part))
                for i, item in enumerate(wanted):
                    if last and item in last:  # copied: a part of a value keeps all of it
                        found[i] = found[i][max(0, len(given) - last[item] - at) :].copy()
                parts.append(found)
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def rewindable(self, end: int, to: int, sequence: int = 0) -> bool:
        """Whether every ring still holds the window before `to`, with `end` positions written."""
        return self.rings.hold(end, to, sequence, self._planes())

    def checkpoint(self) -> Callable[[], None]:
        """See `base.Engine.checkpoint`."""
        with self.team.mine():
            rings = [p for p in self.planes.values() if p.capacity < self.options.context]
            kept, before = [(ring.memory, ring.memory.copy()) for ring in rings], self.rings.copy()

        def restore() -> None:
            with self.team.mine():
                for memory, content in kept:
                    memory[:] = content
                self.rings = before.copy()

        return restore

    def _planes(self) -> list[Plane]:
        return [plane.of for plane in self.planes.values()]

    def _run(self, program: str, rows: TokenRows, to: F32Array | None = None) -> F32Array:
        """Runs a program; gives its logits, in `to` if that is given: they are large, and a copy takes its time."""
        loaded = self.group(GROUP_OF[program])
        out = self._call(loaded, program, rows, None if to is None else to.reshape(-1))
        return out.reshape(-1, self.vocabulary)

    def _call(
        self, loaded: _Group, program: str, rows: TokenRows, out: F32Array | None = None, likeliest: int = 0
    ) -> F32Array:
        """Runs a program; gives the memory of its first output, `out` if that is given: none where only so many of the
        likeliest tokens are wanted."""
        self.rings.write(rows, self._planes())
        if out is None:
            out = np.empty(0 if likeliest else loaded.record.result_size(program, len(rows)), np.float32)
        fields = loaded.fields | {
            "tokens": rows.ids.ctypes.data,
            "positions": rows.positions.ctypes.data,
            "slots": rows.sequences.ctypes.data,
            "out": 0 if likeliest else out.ctypes.data,
            "likeliest": likeliest,
            "rows": len(rows),
        }
        if self.profiles is not None and loaded.profiled:
            taken = self.profiles.setdefault(program, Profile(self.plan(program), self.options.threads))
            taken.steps += 1
            fields["profile"] = taken.table.ctypes.data
        self.team.run(loaded.addresses[program], fields)
        return out

    @contextmanager
    def profiling(self, group: str = "generate") -> Iterator[dict[str, Profile]]:
        """Within, steps run programs that take the time of each kernel; those of a group are compiled before it begins.
        What each program took, by its name, is there when it is over. One at a time, and one thread's steps."""
        self.profiles = {}
        try:
            clock = Clock(self.group(group).library)
            yield self.profiles
            tick = clock.tick()
            for taken in self.profiles.values():
                taken.finish(tick)
        finally:
            self.profiles = None

    # --- programs and memory ------------------------------------------------------------------------

    def group(self, name: str) -> _Group:
        """Programs of a group, compiled and given their memory on first use."""
        profiled = self.profiles is not None
        groups = self.profiled_groups if profiled else self.groups
        if name not in groups:
            record = self.programs.record(name, self.options)
            with self.packed.making(record.weights):  # while what is not kept is compiled
                library = self.programs.library(name, self.options, profiled)
            groups[name] = _Group(record, library, self, profiled)
            self.team.keep.append(groups[name].library)
        return groups[name]

    def plan(self, form: str) -> Plan:
        """A planned program: decode, prefill, all, few or batch."""
        return self.programs.compilation.plan(form, self.options)

    def address_of(self, item: Stored) -> int:
        """Where a weight lies: in the mapped file, packed, or decoded where f32 is wanted of something else."""
        if item.how == "weight":
            self.kept.append(whole(self.weights, item))
            return int(self.kept[-1].ctypes.data)
        if item.how == "pack":
            return self.packed.address_of(item)
        if item.name not in self.decoded:
            self.decoded[item.name] = decoded(self.weights, item)
        return int(self.decoded[item.name].ctypes.data)

    def cache_tables(self, planes: tuple[Plane, ...]) -> dict[str, int]:
        """Tables of plane addresses and capacities; planes are allocated once for all programs."""
        for plane in planes:
            if (plane.slot, plane.plane) not in self.planes:
                self.planes[plane.slot, plane.plane] = _Plane(plane, self.options)
        ours = [self.planes[p.slot, p.plane] for p in planes]
        addresses = np.array([p.memory.ctypes.data for p in ours], np.uint64)
        capacities = np.array([p.capacity for p in ours], np.int64)
        self.tables += [addresses, capacities]
        return {"planes": addresses.ctypes.data, "capacities": capacities.ctypes.data}

    def _compile_runtime(self) -> bytes:
        from .runtime_ir import runtime_module

        return compile_object(runtime_module(self.target), self.target)


def _watched(planned: Plan, arena: NDArray[np.uint8], out: F32Array, rows: int) -> list[NDArray[Any]]:
    """What a program's outputs after the first were, after a step; `out` is the memory of the first."""
    from briolette.compiler.views import view_of

    found, first = [], view_of(planned.module.outputs[0]).base
    for output in planned.module.outputs[1:]:
        view = view_of(output)
        buffer = planned.buffers.get(view.base)
        assert buffer is not None or view.base is first
        memory = out if buffer is None else arena[buffer.offset : buffer.offset + buffer.bytes]
        dtype = np.int32 if output.type.dtype == "i32" else np.float32
        found.append(view.show(memory.view(dtype), {"T": rows}).copy())
    return found


class _Plane:
    """A cache plane's memory: of each sequence, all positions, or a ring that holds a window and the chunk being
    written, behind the first positions where those stay."""

    def __init__(self, of: Plane, options: Options):
        self.of, self.capacity = of, of.positions(options)
        self.memory = aligned(of.memory(options).bytes).view(DTYPES.get(of.dtype, np.uint8))  # codes are bytes


def ops() -> frozenset[str]:
    """See `base.Backend.ops`."""
    from .support import kernels

    return frozenset(kernels())


def default_weights() -> str:
    """Packed where the processor multiplies bytes in one instruction; elsewhere the kernels in f32 are as fast."""
    return "packed" if Target.host().multiplies_bytes else "mapped"


def compile(source: Source | Module, weights: Weights, options: Options) -> CpuEngine:
    """See `base.Backend.compile`."""
    return CpuEngine(source, weights, options)
