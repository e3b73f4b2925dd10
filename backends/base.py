"""What every backend offers: an engine for one model, with its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError

if TYPE_CHECKING:  # a program that is known from an earlier run needs no compiler
    from briolette.compiler.ir import Module, Node

F32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """Access to a model file's tensors: `stored` gives the bytes of one, uint8[...], in its block format.

    The bytes may be a view of a mapped file; an engine keeps the pages it uses. `forget` says that a tensor has
    been copied whole: its pages may leave the memory; `scattered`, that of the rest only small parts will be read.
    """

    stored: Callable[[str], NDArray[np.uint8]]
    forget: Callable[[str], None] = lambda name: None
    scattered: Callable[[], None] = lambda: None


WEIGHTS = ("packed", "mixed", "mapped")
PREFILL = ("exact", "fast")
LIKELIEST = 128  # tokens that an engine of `TellsLikeliest` tells at most
ALL_LOGITS_CHUNK = 64  # tokens a step when every token's logits are wanted: they are large


@dataclass(frozen=True)
class Options:
    """How an engine is built: `cache` is the KV element type, `context` the most positions it can hold.

    weights: "mapped", read where they lie in the file and multiplied in f32; or "packed", put in the order that
    the fastest kernels want when they are loaded, and multiplied in integers; or "mixed", packed but for experts', of
    which a token reads a few: the file's pages of the others need not be in memory. prefill: with packed weights,
    whether the activations of a prompt are rounded to 16 bits ("exact") or to 8 ("fast"); a single token's always to
    16.
    """

    context: int
    cache: str = "f32"
    threads: int = 1
    chunk: int = 256  # tokens a prefill step takes at most
    weights: str = "mapped"
    prefill: str = "exact"
    sequences: int = 1  # that the engine holds side by side, each of up to `context` positions


class Source:
    """The unrolled module of a model, made when it is first asked for.

    key: names all that it is made from, so that what follows from it can be kept on disk; "" where that is not known.
    made: what backends keep here, by their names, for as long as there is this source.
    """

    def __init__(self, make: Callable[[], Module], key: str = ""):
        self._make, self.key = make, key
        self.made: dict[str, Any] = {}

    @cached_property
    def module(self) -> Module:
        return self._make()

    @staticmethod
    def of(given: Source | Module) -> Source:
        """A source, or one of a module that is there."""
        return given if isinstance(given, Source) else Source(lambda: given)


@dataclass(frozen=True)
class PlaneMemory:
    """A K or V plane of one layer's cache: `positions` it holds of each of `sequences`, of `token_bytes` each."""

    slot: int
    plane: str
    token_bytes: int
    positions: int
    window: int | None = None  # where every attention that reads it sees no more: the plane is a ring
    sequences: int = 1

    @property
    def bytes(self) -> int:
        return self.token_bytes * self.positions * self.sequences


@dataclass(frozen=True)
class Room:
    """Bytes that are free on a device, and its name."""

    bytes: int
    device: str


@dataclass(frozen=True)
class Memory:
    """What an engine takes, in bytes: of the host's memory, or, where a backend has a device (`DeviceBackend`), what
    `allocated` names of the device's and the rest of the host's.

    mapped: tensors read where they lie in the file. rows: those of them that are only looked up in, with
    the bytes of a row. decoded: tensors kept as f32 beside the file. packed: tensors kept in the order of the
    kernels instead. arena: kept for the results within a step. scratch: of all threads. tables: where native code
    finds weights and planes. logits: of one step. passing: results that are allocated within a step and given back.
    Two estimates: libraries, what the backend loads; compiling, what machine code takes when it is made, where it is
    not kept from an earlier run. nodes: how many the unrolled program has.
    """

    mapped: Mapping[str, int]
    rows: Mapping[str, int]
    decoded: Mapping[str, int]
    planes: tuple[PlaneMemory, ...]
    arena: int = 0
    scratch: int = 0
    tables: int = 0
    logits: int = 0
    passing: int = 0
    packed: Mapping[str, int] = field(default_factory=dict)
    libraries: int = 0
    compiling: int = 0
    nodes: int = 0

    @property
    def allocated(self) -> dict[str, int]:
        """What an engine keeps between steps, as its `allocated` tells it afterwards."""
        return {
            "decoded": sum(self.decoded.values()),
            "packed": sum(self.packed.values()),
            "kv": sum(plane.bytes for plane in self.planes),
            "arena": self.arena,
            "scratch": self.scratch,
            "tables": self.tables,
        }


class Engine(Protocol):
    """Sequences of one model, `Options.sequences` of them, by number from 0. Positions are counted by the caller."""

    def step(self, tokens: Sequence[int], start: int, logits: str = "last", sequence: int = 0) -> F32Array:
        """Runs tokens of one sequence at positions start, start + 1, …

        Gives logits float32[1, V] of the last token, or float32[T, V] for `logits="all"`. What the sequence's cache
        holds at `start` and after is overwritten. Raises BrioletteError for tokens that are not in the
        vocabulary, positions outside the context, sequences that there are not, and when the engine has been closed.
        """
        ...

    def batch(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> F32Array:
        """Runs tokens of several sequences at once, reading weights once for many of them.

        Token i belongs at positions[i] of sequences[i]. A sequence may have several tokens: they are in order, each at
        the position after the one before. Gives logits float32[N, V] of every token. Each sequence's cache is
        overwritten as by `step`. Raises BrioletteError as `step` does, and for lists of different lengths or positions
        that do not follow each other.
        """
        ...

    def values(
        self, tokens: Sequence[int], wanted: Sequence[Node], last: Mapping[Node, int] | None = None
    ) -> list[NDArray[Any]]:
        """What some nodes of the unrolled module are, float32 or int32 in their shapes, with tokens in a fresh
        context; of those in `last`, for that many of the last tokens. The nodes are given buffers that they keep: the
        program is another than that of `step`."""
        ...

    def prepare(self) -> None:
        """Does now what the first step would: compiles the programs that it needs, and loads their weights."""
        ...

    def rewindable(self, end: int, to: int, sequence: int = 0) -> bool:
        """Whether, with `end` positions of a sequence cached, its next step may start at `to`: ring buffers forget."""
        ...

    def checkpoint(self) -> Callable[[], None]:
        """What ring buffers hold now, to be put back by calling the result: after steps that went on from here, the
        next may start here again. Only while the context has been neither rewound nor used for something else."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        ...

    @property
    def allocated(self) -> dict[str, int]:
        """Bytes taken so far, under the names of `Memory.allocated`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Choice:
    """How a token is to be chosen from logits: the options of `engine.sampling.Sampling`, the tokens that the penalty
    is for, each once, and a random number from 0 to 1."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    penalty: float
    recent: tuple[int, ...]
    random: float


@runtime_checkable
class Chooses(Protocol):
    """An engine that chooses tokens where its logits are."""

    def choose(self, token: int, position: int, choice: Choice, sequence: int = 0) -> int | None:
        """Runs one token as `Engine.step` does, and chooses the one after it: -1 where logits are not numbers, None
        where it cannot, and has not run the token."""
        ...


@runtime_checkable
class TellsLikeliest(Protocol):
    """An engine that tells the likeliest tokens and writes no other logits."""

    def likeliest(
        self, token: int, position: int, count: int, sequence: int = 0
    ) -> tuple[NDArray[np.int32], F32Array] | None:
        """Runs one token as `Engine.step` does. The `count` likeliest tokens after it, up to `LIKELIEST`, by ascending
        id, and their logits, both [count]; of equally likely ones, those of lower ids. None where it cannot, and has
        not run the token."""
        ...


class Backend(Protocol):
    """Compiles an unrolled module (before `optimise`) for a model. Where a source is wanted, a module is one, too."""

    name: str

    def ops(self) -> frozenset[str]:
        """The ops its kernels cover; the rest must decompose."""
        ...

    def compile(self, source: Source | Module, weights: Weights, options: Options) -> Engine: ...

    def default_weights(self) -> str:
        """Which of `WEIGHTS` suits this machine."""
        ...

    def memory(self, source: Source | Module, cache: str) -> Callable[[Options], Memory]:
        """What an engine with a KV cache of that type will take for generation, by its other options: with several
        sequences, for steps with tokens of several of them, too. Logits of every token need further programs, which
        are not counted. Allocates nothing."""
        ...


class DeviceBackend(Backend, Protocol):
    """A backend whose engines allocate in the memory of a device of its own."""

    def room(self) -> Room:
        """What is free there now. Raises BrioletteError that says what is missing where there is no such device."""
        ...


I32Array = NDArray[np.int32]


@dataclass(frozen=True)
class TokenRows:
    """The tokens of a step, int32[N] each: id, position, and the sequence that it belongs to."""

    ids: I32Array
    positions: I32Array
    sequences: I32Array

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, count: int) -> TokenRows:
        return TokenRows(*(a[start : start + count] for a in (self.ids, self.positions, self.sequences)))

    def each(self) -> Iterator[tuple[int, I32Array]]:
        """The sequences there are, and which rows are theirs."""
        for sequence in sorted(set(self.sequences.tolist())):
            yield sequence, np.flatnonzero(self.sequences == sequence).astype(np.int32)


def checked(tokens: Sequence[int], start: int, ids: int, options: Options, sequence: int = 0) -> TokenRows:
    """The tokens of a step of one sequence. Raises BrioletteError for ids, positions and sequences that there are not:
    native code would read outside of its tables."""
    count = np.size(tokens)
    return checked_rows(tokens, range(start, start + count), [sequence] * count, ids, options)


def checked_rows(
    tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], ids: int, options: Options
) -> TokenRows:
    """The tokens of a batch, likewise."""
    given, at, of = (np.asarray(some, np.int64) for some in (tokens, positions, sequences))
    if given.ndim != 1 or not given.size:
        raise BrioletteError("a step needs a list of at least one token")
    if at.shape != given.shape or of.shape != given.shape:
        raise BrioletteError(f"{given.size} tokens have {at.size} positions and {of.size} sequences: give one each")
    if given.min() < 0 or given.max() >= ids:
        raise BrioletteError(f"token ids go from 0 to {ids - 1}, not {given.min()} to {given.max()}")
    if of.min() < 0 or of.max() >= options.sequences:
        raise BrioletteError(f"sequences go from 0 to {options.sequences - 1}, not {of.min()} to {of.max()}")
    if at.min() < 0 or at.max() >= options.context:
        raise BrioletteError(f"positions {at.min()} to {at.max()} do not fit into a context of {options.context}")
    rows = TokenRows(given.astype(np.int32), at.astype(np.int32), of.astype(np.int32))
    for sequence, mine in rows.each():
        if np.any(np.diff(at[mine]) != 1):
            raise BrioletteError(f"positions of sequence {sequence} do not follow each other: {at[mine].tolist()}")
    return rows
