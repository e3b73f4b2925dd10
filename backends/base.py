"""What every backend offers: an engine for one model, with its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.dims import evaluate
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module, topological

from . import formats

F32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """Access to a model file's tensors: `stored` gives the bytes of one, uint8[...], in its block format.

    The bytes may be a view of a mapped file; an engine keeps the pages it uses and copies none.
    """

    stored: Callable[[str], NDArray[np.uint8]]


@dataclass(frozen=True)
class Options:
    """How an engine is built: `cache` is the KV element type, `context` the most positions it can hold."""

    context: int
    cache: str = "f32"
    threads: int = 1
    chunk: int = 256  # tokens a prefill step takes at most


class Engine(Protocol):
    """One sequence of one model. Positions are counted by the caller."""

    def step(self, tokens: Sequence[int], start: int, logits: str = "last") -> F32Array:
        """Runs tokens at positions start, start + 1, …

        Gives logits float32[1, V] of the last token, or float32[T, V] for `logits="all"`. What the cache
        holds at `start` and after is overwritten. Raises BrioletteError for tokens that are not in the
        vocabulary, positions outside the context, and when the engine has been closed.
        """
        ...

    def rewindable(self, end: int, to: int) -> bool:
        """Whether, with `end` positions cached, the next step may start at `to`: ring buffers forget."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Compiles an unrolled module (before `optimise`) for a model."""

    name: str
    ops: frozenset[str]  # the ops its kernels cover; the rest must decompose

    def compile(self, module: Module, weights: Weights, options: Options) -> Engine: ...


def checked(tokens: Sequence[int], start: int, ids: int, context: int) -> NDArray[np.int32]:
    """A step's token ids as an array. Raises BrioletteError for ids and positions that there are not: native
    code would read outside of its tables."""
    given = np.asarray(tokens, np.int64)
    if given.ndim != 1 or not given.size:
        raise BrioletteError("a step needs a list of at least one token")
    if given.min() < 0 or given.max() >= ids:
        raise BrioletteError(f"token ids go from 0 to {ids - 1}, not {given.min()} to {given.max()}")
    if start < 0 or start + given.size > context:
        last = start + given.size - 1
        raise BrioletteError(f"positions {start} to {last} do not fit into a context of {context}")
    return given.astype(np.int32)


def token_ids(module: Module) -> int:
    """How many token ids a model knows: the rows of the smallest table that tokens are looked up in."""
    looked_up = (n for n in topological(module.roots) if n.op == "embed" and n.args[1].op == "tokens")
    return min((evaluate(n.args[0].shape[0], {}) for n in looked_up), default=1 << 31)


def vocabulary_of(module: Module) -> int:
    """How many logits a token has."""
    size = module.outputs[0].shape[-1]
    assert isinstance(size, int)
    return size


def array_of(weights: Weights, module: Module, name: str) -> NDArray[Any]:
    """A tensor as float32 in its own shape."""
    info = next(t for t in module.tensors if t.name == name)
    stored = np.ascontiguousarray(weights.stored(name)).reshape(-1)
    width = formats.row_bytes(info.format, info.shape[-1]) if info.shape else stored.size
    return formats.decode(info.format, stored.reshape(-1, width)).reshape(info.shape)
