"""The reference backend: the numpy evaluator over the op table. Slow, plain, in f32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.dims import evaluate
from briolette.compiler.errors import BrioletteError
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.ops import OPS
from briolette.compiler.pipeline import Form, optimise
from briolette.compiler.plan import is_view, writes_cache
from briolette.compiler.rules.cache import kept

from .base import F32Array, Memory, Options, PlaneMemory, Source, Weights, checked, checked_rows
from .reading import array_of, stored_bytes, token_ids, vocabulary_of

name = "reference"
F32_BYTES = 4


class ReferenceEngine:
    """Runs the optimised program through `compiler.interp`. Weights are dequantised once, on first use."""

    def __init__(self, module: Module, weights: Weights, options: Options):
        self.module, self.options = module, options
        self.arrays: dict[str, F32Array] = {}

        def weight(name: str) -> F32Array:
            if name not in self.arrays:
                self.arrays[name] = array_of(weights, module, name)
            return self.arrays[name]

        self.interpreter = Interpreter(weight)
        self.caches = [self.interpreter.planes, *({} for _ in range(1, options.sequences))]
        self.programs: dict[str, Module] = {}
        self.vocabulary, self.token_ids = vocabulary_of(module), token_ids(module)
        self.closed = False

    def step(self, tokens: Sequence[int], start: int, logits: str = "last", sequence: int = 0) -> F32Array:
        """See `base.Engine.step`."""
        if self.closed:
            raise BrioletteError("this engine has been closed")
        ids = checked(tokens, start, self.token_ids, self.options, sequence).ids
        self.interpreter.planes = self.caches[sequence]
        if logits not in self.programs:
            self.programs[logits] = optimise(self.module, Form(logits=logits, cache=self.options.cache))
        program, chunk = self.programs[logits], self.options.chunk if logits == "last" else len(ids)
        for at in range(0, len(ids), chunk):
            found = self.interpreter.step(program.outputs, ids[at : at + chunk], start + at)[0]
        return np.asarray(found, np.float32)

    def batch(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> F32Array:
        """See `base.Engine.batch`. One sequence after the other."""
        rows = checked_rows(tokens, positions, sequences, self.token_ids, self.options)
        found = np.empty((len(rows), self.vocabulary), np.float32)
        for sequence, mine in rows.each():
            found[mine] = self.step(rows.ids[mine].tolist(), int(rows.positions[mine[0]]), "all", sequence)
        return found

    def values(
        self, tokens: Sequence[int], wanted: Sequence[Node], last: Mapping[Node, int] | None = None
    ) -> list[NDArray[Any]]:
        """See `base.Engine.values`. Nothing is optimised here: these are the values of the program as written."""
        if self.closed:
            raise BrioletteError("this engine has been closed")
        ids = checked(tokens, 0, self.token_ids, self.options).ids
        self.interpreter.planes = self.caches[0]
        stored = kept(replace(self.module, outputs=tuple(wanted)), self.options.cache)
        self.interpreter.planes.clear()
        found = self.interpreter.step(stored.outputs, ids, 0)
        rows = [(last or {}).get(item, len(ids)) for item in wanted]
        return [value[-count:] for value, count in zip(found, rows, strict=True)]

    def rewindable(self, end: int, to: int, sequence: int = 0) -> bool:
        """Always: the evaluator keeps every position."""
        return to <= end

    def checkpoint(self) -> Callable[[], None]:
        """See `base.Engine.checkpoint`: there are no rings."""
        return lambda: None

    @property
    def allocated(self) -> dict[str, int]:
        """See `base.Engine.allocated`."""
        planes = [plane for cache in self.caches for plane in cache.values()]
        return {
            "decoded": sum(array.nbytes for array in self.arrays.values()),
            "packed": 0,
            "kv": sum(plane.nbytes for plane in planes),
            "arena": 0,
            "scratch": 0,
            "tables": 0,
        }

    def prepare(self) -> None:
        """See `base.Engine.prepare`: there is nothing to do."""

    def close(self) -> None:
        for cache in self.caches:
            cache.clear()
        self.closed = True


def ops() -> frozenset[str]:
    """See `base.Backend.ops`."""
    return frozenset(OPS)


def default_weights() -> str:
    """Always mapped: what the program means, in f32."""
    return "mapped"


def compile(source: Source | Module, weights: Weights, options: Options) -> ReferenceEngine:
    """See `base.Backend.compile`."""
    return ReferenceEngine(Source.of(source).module, weights, options)


def memory(source: Source | Module, cache: str) -> Callable[[Options], Memory]:
    """See `base.Backend.memory`. Everything is f32, and every position is kept, in sliding layers too."""
    module = Source.of(source).module
    program, nodes = optimise(module, Form(cache=cache)), len(topological(module.roots))
    order = topological(program.roots)
    read = {item["name"]: item for item in order if item.op == "weight"}
    decoded = {name: F32_BYTES * math.prod(item.shape) for name, item in read.items()}
    mapped = {name: stored_bytes(item) for name, item in read.items()}
    writes = [write for item in order if (write := writes_cache(item)) is not None]
    decoding = _decoding(mapped, decoded)

    def of(options: Options) -> Memory:
        planes = (
            PlaneMemory(
                w["slot"],
                w["plane"],
                F32_BYTES * math.prod(w.shape[1:]),
                options.context,
                sequences=options.sequences,
            )
            for w in writes
        )
        sizes = {"T": options.chunk, "C": options.context}
        passing = max(_most_at_once(order, sizes), decoding)
        return Memory(mapped, {}, decoded, tuple(planes), passing=passing, nodes=nodes)

    return of


def _decoding(mapped: Mapping[str, int], decoded: Mapping[str, int]) -> int:
    """Bytes at the fullest moment of decoding one tensor after another, beyond what all take in the end: each
    is there twice for a moment."""
    taken = most = 0
    for name, size in decoded.items():
        taken += mapped[name] + size
        most = max(most, taken + size)
    return most - taken


def _most_at_once(order: Sequence[Node], sizes: Mapping[str, int]) -> int:
    """Bytes at the fullest moment of an evaluation: every value is kept to its end, and ops have values of
    their own on the way."""
    kept = most = 0
    for item in order:
        most = max(most, kept + _on_the_way(item, sizes))
        kept += _kept(item, sizes)
    return max(most, kept)


def _kept(item: Node, sizes: Mapping[str, int]) -> int:
    """Bytes of a value's own: views show others', planes and weights are counted elsewhere."""
    if item.op in ("weight", "param") or is_view(item) or writes_cache(item) is not None:
        return 0
    return F32_BYTES * math.prod(evaluate(size, sizes) for size in item.shape)


def _on_the_way(item: Node, sizes: Mapping[str, int]) -> int:
    """Bytes that an op takes and gives back, its result aside."""
    if item.op == "attend":  # scores, for softmax three times; keys and values once a query head
        q, k, v = item.args[:3]
        rows, heads = evaluate(q.shape[0], sizes), evaluate(q.shape[1], sizes)
        scores = rows * heads * sizes["C"]
        repeated = max(heads * sizes["C"] * evaluate(x.shape[2], sizes) for x in (k, v))
        return F32_BYTES * (2 * scores + max(scores, repeated)) + rows * sizes["C"]  # and what is seen
    if item.op == "cache_write":  # a longer plane is made beside the old one
        return F32_BYTES * math.prod(evaluate(size, sizes) for size in item.shape)
    if item.op == "fused":
        return _most_at_once(topological(item["block"].roots), sizes)
    return 0
