"""A model ready to use: a GGUF file, its architecture, a backend's engine and the file's tokenizer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from briolette.backends.base import PREFILL, WEIGHTS, Chooses, Engine, Options, Source, TellsLikeliest, Weights
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header

from .available import memory_for
from .backends import backend_named
from .fitting import fitted
from .gguf import GgufFile, open_gguf
from .sampling import Sampler, Sampling, StopStrings, not_numbers
from .source import ModelSource, source_of
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from briolette.compiler.ir import Module
    from briolette.spec.tree import Architecture

# Positions a cache has room for unless asked otherwise; memory is taken only as they fill.
DEFAULT_CONTEXT = 32768


def load(
    path: str | Path | GgufFile,
    backend: str = "cpu",
    kv: str | None = None,
    threads: int | None = None,
    spec: str | Path | Architecture | None = None,
    context: int | None = None,
    chunk: int = 256,
    weights: str | None = None,
    prefill: str | None = None,
    sequences: int = 1,
) -> Model:
    """Opens a GGUF file and compiles its architecture against it.

    path: the file, or any shard of a split one, or one that is open. backend: "cpu", "cuda" (docs/cuda.md; nothing of
    it has run on a GPU yet) or "reference". kv: how the KV cache is kept: "f32", "f16" or "bf16" (by default f32 where
    the weights are, else f16), or a policy that compresses it: "quality", "balanced", "compact", or spelled out
    (`compiler.policy`). threads: by default one a core. spec: an architecture file instead of the shipped one. context:
    the most positions of a sequence. chunk: tokens a prefill step takes. weights: where the file's are quantised,
    "packed" puts them in the order of the fastest kernels, which multiply in integers, "mixed" does so but for experts,
    and "mapped" reads them where they lie and multiplies in f32 (by default the first that fits into memory, on a
    processor that has instructions for it). prefill: with packed weights, "exact" rounds the activations of a prompt to
    16 bits, "fast" to 8 (by default exact, but fast where `briolette eval prefill` found that this model loses little).
    sequences: how many the engine holds side by side, for `engine.batch`; the model uses the first. Raises
    BrioletteError for what cannot be opened, read or compiled, and for weights that do not fit as they are asked for.
    """
    file = open_gguf(path) if isinstance(path, str | Path) else path
    source = source_of(spec, file.header)
    chosen, way = weights or backend_named(backend).default_weights(), prefill or _prefill(file, source, backend)
    options = options_for(file, kv, threads, context, chunk, chosen, way, sequences, source)
    options = fitted(file, source, options, backend, memory_for(backend), asked=weights is not None)
    return Model(file, source, backend, options)


def _prefill(file: GgufFile, source: ModelSource, backend: str) -> str:
    if backend != "cpu":
        return PREFILL[0]
    from .gate import prefill_of

    return prefill_of(file, source)


def options_for(
    file: GgufFile | Header,
    kv: str | None,
    threads: int | None,
    context: int | None,
    chunk: int,
    weights: str = "mapped",
    prefill: str = "exact",
    sequences: int = 1,
    made: Source | None = None,
) -> Options:
    """Checked engine options, with defaults that suit the file and the machine. With the file's program, what the KV
    policy leaves to the file is read from it."""
    header = file if isinstance(file, Header) else file.header
    if kv is None:
        plain = all(t.format == "f32" for t in header.tensors.values() if len(t.shape) > 1)
        kv = "f32" if plain else "f16"
    else:
        kv = _checked_cache(kv, file, made)
    threads = cores() if threads is None else threads
    context = min(context_length(header) or DEFAULT_CONTEXT, DEFAULT_CONTEXT) if context is None else context
    for name, value in (("threads", threads), ("context", context), ("chunk", chunk), ("sequences", sequences)):
        if not isinstance(value, int) or value < 1:
            raise BrioletteError(f"{name} must be a positive number, not {value!r}")
    for what, chosen, known in (("weights are", weights, WEIGHTS), ("prefill is", prefill, PREFILL)):
        if chosen not in known:
            raise BrioletteError(f"{what} {' or '.join(known)}, not `{chosen}`")
    return Options(context, kv, threads, min(chunk, context), weights, prefill, sequences)


def _checked_cache(kv: str, file: GgufFile | Header, made: Source | None) -> str:
    from briolette.compiler.policy import policy_named

    if not policy_named(kv).once or made is None or isinstance(file, Header):
        return kv
    from .kv import settled

    return settled(kv, made, file.tensor_bytes)


def context_length(header: Header) -> int | None:
    """The most positions that the model was made for, where the file says it."""
    told = header.metadata.get(f"{header.architecture}.context_length")
    return told if isinstance(told, int) and told > 0 else None


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compile(
    spec: str | Path | Architecture,
    source: Header | str | Path | GgufFile,
    backend: str = "cpu",
    kv: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    chunk: int = 256,
    weights: str | None = None,
    prefill: str | None = None,
    sequences: int = 1,
) -> Engine:
    """An engine for an architecture and a model file; with a `Header` alone it compiles but has no weights to run.

    The options, and what is raised, are those of `load`.
    """
    if not isinstance(source, Header):
        return load(source, backend, kv, threads, spec, context, chunk, weights, prefill, sequences).engine
    made, chosen = source_of(spec, source), weights or backend_named(backend).default_weights()
    options = options_for(source, kv, threads, context, chunk, chosen, prefill or PREFILL[0], sequences, made)
    options = fitted(source, made, options, backend, memory_for(backend), asked=weights is not None)
    return backend_named(backend).compile(made, Weights(_no_weights), options)


def _no_weights(name: str) -> NDArray[np.uint8]:
    raise BrioletteError(f"this engine was compiled from a header alone: there is no tensor {name} to run with")


@dataclass
class Usage:
    """What the latest generation took.

    prompt: tokens of the prompt. reused: how many of them the cache held already. generated: tokens made.
    prefill, decode: seconds in each, without what the caller does between two pieces of text. steps: decode
    steps run. finish: "stop" (a token or a text that ends the reply), "length" (`max_tokens`), "context"
    (the context is full), or "" where the caller ended it.
    """

    prompt: int
    reused: int
    generated: int = 0
    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0
    finish: str = ""

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens computed a second."""
        return (self.prompt - self.reused) / self.prefill if self.prefill else 0.0

    @property
    def decode_rate(self) -> float:
        """Decode steps a second."""
        return self.steps / self.decode if self.decode else 0.0


class Model:
    """One model and one KV cache. What the cache holds is reused wherever a new prompt begins with it."""

    def __init__(self, file: GgufFile, source: ModelSource, backend: str, options: Options):
        self.file, self.source, self.options = file, source, options
        self.backend = backend_named(backend)
        self.cached: list[int] = []  # the tokens whose keys and values the engine holds
        self.usage: Usage | None = None  # of the latest generation
        # Told (computed, wanted) tokens of a prompt after each chunk, for a progress bar.
        self.progress: Callable[[int, int], None] | None = None

    @cached_property
    def engine(self) -> Engine:
        file = self.file
        weights = Weights(file.tensor_bytes, file.forget, file.scattered)
        return self.backend.compile(self.source, weights, self.options)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self.file)

    @property
    def header(self) -> Header:
        return self.file.header

    @property
    def tree(self) -> Architecture:
        """The architecture, as it was read."""
        return self.source.tree

    @property
    def module(self) -> Module:
        """The unrolled program."""
        return self.source.module

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return self.engine.vocabulary

    @property
    def chat_template(self) -> str | None:
        """The file's own jinja template, where it has one."""
        found = self.header.metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the beginning-of-sequence token if the file asks for it."""
        return self.tokenizer.encode(text)

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(ids)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """float32[T, V]: the logits after each token, in a fresh context."""
        ids = self._checked(ids)
        self.cached = []
        result = self.engine.step(ids, 0, "all")
        self.cached = list(ids)
        return result

    def values(
        self, ids: Sequence[int], wanted: Iterable[str] | None = None, last: Mapping[str, int] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Named values (all of them, or those of some labels) of one pass over tokens in a fresh context.

        Labels are those of `compiler.labels`; values are float32, or int32 where they are ids, [T, ...]. Of labels in
        `last`, only the values of that many of the last tokens.
        """
        from briolette.compiler.labels import per_token, shown_labels

        known = per_token(self.module)
        shown = (label for label in shown_labels(self.module).values() if label in known)
        chosen = list(dict.fromkeys(shown if wanted is None else wanted))
        missing = next((label for label in chosen if label not in known), None)
        if missing is not None:
            raise BrioletteError(f"this program has no value `{missing}`; `briolette trace` lists what it has")
        ids = self._checked(ids)
        self.cached = []
        nodes = list(dict.fromkeys(known[label] for label in chosen))
        rows = {known[label]: count for label, count in (last or {}).items()}
        found = dict(zip(nodes, self.engine.values(ids, nodes, rows), strict=True))
        return {label: found[known[label]] for label in chosen}

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """float32[V]: the logits after the last token. Only what the cache does not hold yet is computed."""
        ids = self._checked(ids)
        start = self.reusable(ids)
        self.cached = self.cached[:start]  # if the step is interrupted, no more than this is known to be there
        chunk = len(ids) if self.progress is None else self.options.chunk
        for at in range(start, len(ids), chunk):
            result: NDArray[np.float32] = self.engine.step(ids[at : at + chunk], at)[-1]
            self.cached = ids[: at + chunk]
            if self.progress is not None:
                self.progress(min(at + chunk, len(ids)) - start, len(ids) - start)
        return result

    def reusable(self, ids: Sequence[int]) -> int:
        """How many of `ids` the cache holds; at least the last must be computed, for its logits."""
        same = 0
        for ours, wanted in zip(self.cached, ids[:-1], strict=False):
            if ours != wanted:
                break
            same += 1
        return same if self.engine.rewindable(len(self.cached), same) else 0

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        special: bool = False,
        **sampling: Any,
    ) -> Iterator[str]:
        """Text that continues the prompt, one item a token (an item may be empty: half a character waits).

        stop: texts that end the generation and are not part of it. special: whether control tokens that the
        model writes are shown by name. Further sampling options: top_k, top_p, min_p, repeat_penalty,
        repeat_last_n. `usage` tells afterwards what it took.
        """
        sampler = Sampler(Sampling(temperature=temperature, seed=seed, **sampling))
        stops = StopStrings([stop] if isinstance(stop, str) else stop)
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise BrioletteError("the prompt is empty, and this model has no beginning-of-sequence token to start from")
        return self._generate(self._checked(ids), max_tokens, sampler, stops, special)

    def _generate(
        self, ids: list[int], max_tokens: int, sampler: Sampler, stops: StopStrings, special: bool
    ) -> Iterator[str]:
        ids = list(ids)
        text = self.tokenizer.stream(special)
        usage = self.usage = Usage(len(ids), self.reusable(ids))
        clock = time.perf_counter
        if max_tokens < 1:
            usage.finish = "length"
            return
        began = clock()
        logits = self.prefill(ids)
        usage.prefill = clock() - began
        began = clock()
        token = sampler.pick(logits, ids)
        usage.decode += clock() - began
        while not usage.finish:
            if token in self.tokenizer.stop_ids:
                usage.finish = "stop"
                break
            ids.append(token)
            usage.generated += 1
            yield stops.push(text.push(token))
            if stops.matched is not None:
                usage.finish = "stop"
            elif usage.generated == max_tokens:
                usage.finish = "length"
            elif len(ids) > self.options.context:
                usage.finish = "context"
            else:
                began = clock()
                token = self._next(ids, sampler)
                usage.decode += clock() - began
                usage.steps += 1
        rest = "" if stops.matched is not None else stops.push(text.flush()) + stops.flush()
        if rest:
            yield rest

    def _next(self, ids: list[int], sampler: Sampler) -> int:
        """The token after `ids`. All logits are written only where fewer do not suffice."""
        if self.cached == ids[:-1]:
            found = self._chosen(ids, sampler)
            if found is not None:
                self.cached.append(ids[-1])
                return found
        return sampler.pick(self._append(ids), ids)

    def _chosen(self, ids: list[int], sampler: Sampler) -> int | None:
        """Runs the last token; chooses the next one on the device, or among the likeliest that the engine tells. None
        where it does neither, and has not run the token."""
        engine, token, position = self.engine, ids[-1], len(self.cached)
        if isinstance(engine, Chooses):
            found = engine.choose(token, position, sampler.choice(ids))
            if found is not None and found < 0:
                not_numbers()
            return found
        told = engine.likeliest(token, position, sampler.wanted(ids)) if isinstance(engine, TellsLikeliest) else None
        return told and sampler.pick(told[1], ids, told[0])

    def _append(self, ids: list[int]) -> NDArray[np.float32]:
        """The logits after tokens of which the cache holds all but the last, unless it was used in between."""
        if self.cached != ids[:-1]:
            return self.prefill(ids)
        result: NDArray[np.float32] = self.engine.step(ids[-1:], len(self.cached))[0]
        self.cached.append(ids[-1])
        return result

    def _checked(self, ids: Sequence[int]) -> list[int]:
        ids = [int(i) for i in ids]
        if not ids:
            raise BrioletteError("there are no tokens to run")
        wrong = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if wrong is not None:
            raise BrioletteError(f"token id {wrong} is outside the vocabulary of {self.vocabulary}")
        if len(ids) > self.options.context:
            raise BrioletteError(
                f"{len(ids)} tokens do not fit into a context of {self.options.context}; "
                "load the model with a larger context"
            )
        return ids

    def close(self) -> None:
        """Ends the engine's threads. A model that is garbage does so by itself."""
        if "engine" in self.__dict__:
            self.engine.close()
