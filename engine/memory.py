"""The memory that a model will take, before anything of it is loaded or compiled to machine code.

A backend tells what its engine allocates (`base.Backend.memory`), by the same functions that the engine then
allocates by. Here that becomes a plan for people: KV by kind of layer, a peak, the largest context that fits.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from briolette.backends.base import Memory, Options, PlaneMemory, Source
from briolette.compiler.header import Header

from .backends import backend_named, room_of
from .gguf import GgufFile

if TYPE_CHECKING:
    from briolette.compiler.ir import Module

# Estimates, measured on x86-64 Linux with CPython 3.11 as what a process has resident beside all that is
# planned exactly. They differ by some MiB among machines.
INTERPRETER_BYTES = 50 << 20  # Python, numpy, this package, a tokenizer of a real vocabulary
NODE_BYTES = 5 << 10  # programs, for each node of the unrolled one

LOGITS = 2  # arrays of them that are there at once: the last step's and the next's
NO_KIND = "layers"  # what layers of an architecture without kinds are shown as


@dataclass(frozen=True)
class KvMemory:
    """The KV cache of the layers of one kind."""

    kind: str
    layers: tuple[int, ...]  # all of this kind
    stored: tuple[int, ...]  # those with a cache of their own; the others read an earlier layer's
    token_bytes: int  # of K and V of one position, in all these layers
    positions: int  # that a layer holds, at most
    window: int | None  # where layers keep a ring: the widest window they see
    bytes: int  # with those of the nearest positions, which coded layers keep in bf16, too


@dataclass(frozen=True)
class MemoryPlan:
    """What a process that runs a model takes when its context is full, in bytes.

    weights: tensors read whole, where they lie in the mapped file. tables: tensors in it that are only looked
    up in; looked_up: pages of theirs that a full context of different tokens touches, at most. decoded: tensors
    kept as f32 beside the file; packed: tensors kept in the order of the kernels instead of in the file's. kv: by
    kind of layer. arena: results within a step. scratch: the threads' own. addresses: where native code finds
    weights and planes. logits: of the last step and the next. metadata: the vocabulary and other keys, in the mapped
    file. Two estimates: process, of all else (interpreter, libraries, tokenizer, programs), and compiling, of what
    the run adds that compiles the programs; later runs find them compiled. With a backend that has a device, decoded,
    packed, kv, arena, scratch and addresses lie there, and everything else in the host's memory.
    """

    backend: str
    options: Options
    weights: int
    looked_up: int
    tables: int
    decoded: int
    packed: int
    kv: tuple[KvMemory, ...]
    arena: int
    scratch: int
    addresses: int
    logits: int
    metadata: int
    process: int
    compiling: int
    on_device: bool = False  # whether all that an engine allocates beside the file lies in a device's memory

    @property
    def kv_bytes(self) -> int:
        return sum(kind.bytes for kind in self.kv)

    @property
    def mapped(self) -> int:
        """Bytes that are the file's own pages: the system may drop them, and read them again."""
        return self.weights + self.looked_up + self.metadata

    @property
    def allocated(self) -> int:
        """Bytes that the engine takes beside the file."""
        return self._held + self.logits

    @property
    def _held(self) -> int:
        """Bytes that the engine keeps between steps."""
        return self.decoded + self.packed + self.kv_bytes + self.arena + self.scratch + self.addresses

    @property
    def device(self) -> int:
        """Bytes of a device's memory; 0 where an engine works in the host's."""
        return self._held if self.on_device else 0

    @property
    def beside_file(self) -> int:
        """What has to be there for it to run at all: on the device, where there is one."""
        return self.device if self.on_device else self.peak - self.mapped

    @property
    def peak(self) -> int:
        """Bytes of the host's memory, at most."""
        return self.mapped + self.allocated - self.device + self.process + self.compiling

    @property
    def needed(self) -> int:
        """Bytes of the memory that the plan is held against: the device's, or all that the process takes."""
        return self.device if self.on_device else self.peak


class Planner:
    """Plans one model's memory for any options with one type of KV cache; the program is compiled once."""

    def __init__(self, file: GgufFile | Header, source: Source | Module, cache: str, backend: str = "cpu"):
        self.metadata = _metadata_bytes(file) if isinstance(file, GgufFile) else 0
        self.source, self.backend = Source.of(source), backend
        self.on_device = room_of(backend) is not None
        self.measure = backend_named(backend).memory(self.source, cache)

    def plan(self, options: Options) -> MemoryPlan:
        """The plan for these options."""
        taken = self.measure(options)
        whole = sum(size for name, size in taken.mapped.items() if name not in taken.rows)
        tables = {name: taken.mapped[name] for name in taken.rows if name in taken.mapped}
        looked_up = sum(min(size, options.context * _touched(taken.rows[name])) for name, size in tables.items())
        held = taken.allocated
        return MemoryPlan(
            backend=self.backend,
            options=options,
            weights=whole,
            looked_up=looked_up,
            tables=sum(tables.values()),
            decoded=held["decoded"],
            packed=held.get("packed", 0),
            kv=self._by_kind(taken.planes),
            arena=held["arena"] + taken.passing,
            scratch=held["scratch"],
            addresses=held["tables"],
            logits=LOGITS * taken.logits,
            metadata=self.metadata,
            process=_process(taken),
            compiling=taken.compiling,
            on_device=self.on_device,
        )

    def beside_file(self, options: Options) -> int:
        """The same as the plan's, without the plan: that needs the program itself, where this may be kept."""
        taken = self.measure(options)
        held = sum(taken.allocated.values()) + taken.passing
        return held if self.on_device else held + LOGITS * taken.logits + _process(taken) + taken.compiling

    def largest(self, options: Options, memory: int, limit: int) -> int:
        """The largest context up to `limit` that needs at most `memory`; 0 where not even one token fits.

        options: with the chunk that is wanted where the context allows it.
        """

        def fits(context: int) -> bool:
            tried = replace(options, context=context, chunk=min(options.chunk, context))
            return self.plan(tried).needed <= memory

        if fits(limit):
            return limit
        low, high = 0, limit  # `low` fits, or is none; `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _by_kind(self, planes: Sequence[PlaneMemory]) -> tuple[KvMemory, ...]:
        kinds = {name: layers for name, layers, _ in self.source.module.kinds}
        of = {layer: name for name, layers in kinds.items() for layer in layers}
        stored: dict[str, list[PlaneMemory]] = {name: [] for name in kinds}
        for plane in planes:
            stored.setdefault(of.get(plane.slot, NO_KIND), []).append(plane)
        return tuple(_kind(name, kinds.get(name), planes) for name, planes in stored.items())


def plan_memory(file: GgufFile | Header, source: Source | Module, options: Options, backend: str = "cpu") -> MemoryPlan:
    """The memory that an engine for an unrolled module will take. Raises BrioletteError for an unknown backend."""
    return Planner(file, source, options.cache, backend).plan(options)


def _kind(name: str, layers: Sequence[int] | None, planes: Sequence[PlaneMemory]) -> KvMemory:
    stored = tuple(dict.fromkeys(plane.slot for plane in planes))
    whole = [plane for plane in planes if not plane.plane.startswith("near")]
    windows = [plane.window for plane in whole]
    return KvMemory(
        kind=name,
        layers=stored if layers is None else tuple(layers),
        stored=stored,
        token_bytes=sum(plane.token_bytes for plane in whole),
        positions=max((plane.positions for plane in whole), default=0),
        window=max((w for w in windows if w is not None), default=None) if None not in windows else None,
        bytes=sum(plane.bytes for plane in planes),
    )


def _process(taken: Memory) -> int:
    """An estimate of what a process takes beside all that an engine allocates."""
    return INTERPRETER_BYTES + NODE_BYTES * taken.nodes + taken.libraries


def _metadata_bytes(file: GgufFile) -> int:
    """What a file holds beside its tensors."""
    return file.size - sum(file.tensor_bytes(name).nbytes for name in file.header.tensors)


def _touched(row: int) -> int:
    """Bytes of the pages that one row lies on, at most."""
    return mmap.PAGESIZE * (math.ceil((row - 1) / mmap.PAGESIZE) + 1)
