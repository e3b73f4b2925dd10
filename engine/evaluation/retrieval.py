"""How many hidden words a model finds again with each of several caches, and how probable it thinks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from briolette.compiler.errors import BrioletteError
from briolette.engine.gguf import GgufFile
from briolette.engine.model import Model, context_length, load
from briolette.engine.telling import Telling

from .cache_bits import bits_of
from .needles import Document, Question
from .run import Setting

Z = 1.959964  # a normal variable lies within so many standard deviations 95 % of the time


@dataclass(frozen=True)
class Answer:
    """hit: whether the likeliest tokens, one after the other, are the answer. surprise: -log p of it, in nats."""

    hit: bool
    surprise: float


@dataclass(frozen=True)
class Found:
    """What one cache came to: an answer for every question of every document, in their order. loaded: how."""

    loaded: Setting
    bits: float
    answers: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True)
class Tally:
    """Answers to some questions, beside those of another cache to the same.

    share: of hits, with a 95 % interval by Wilson. surprise: mean -log p of an answer in nats, with its standard error.
    probability: the mean of p. lost, gained: hits of the other cache that are none here, and the other way round.
    change: the mean of surprise less that of the other cache, with its standard error, question by question.
    """

    questions: int
    hits: int
    interval: tuple[float, float]
    surprise: tuple[float, float]
    probability: float
    lost: int
    gained: int
    change: tuple[float, float]

    @property
    def share(self) -> float:
        return self.hits / self.questions


def tally(answers: Sequence[Answer], others: Sequence[Answer]) -> Tally:
    """Of answers to the same questions."""
    hits, before = ([each.hit for each in side] for side in (answers, others))
    surprise, other = (np.array([each.surprise for each in side]) for side in (answers, others))
    return Tally(
        len(answers),
        sum(hits),
        wilson(sum(hits), len(hits)),
        _mean(surprise),
        float(np.exp(-surprise).mean()),
        sum(was and not now for now, was in zip(hits, before, strict=True)),
        sum(now and not was for now, was in zip(hits, before, strict=True)),
        _mean(surprise - other),
    )


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Where the true share of hits lies, in 95 of 100 cases: Wilson's score interval (1927), which holds for few
    questions and for shares of 0 and 1, too."""
    share, spread = hits / of, Z * Z / of
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """With its standard error; that is 0 for a single one."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), error


@dataclass
class _Progress:
    bar: Any
    wanted: int
    done: int = field(default=0)

    def step(self) -> None:
        self.done += 1
        self.bar(self.done, self.wanted)


def retrieve(
    file: GgufFile,
    documents: Sequence[Document],
    settings: Sequence[Setting],
    options: dict[str, Any],
    telling: Telling,
) -> list[Found]:
    """Reads all documents with each of the settings, one engine at a time, and asks every question.

    options: of `load`, of all. Raises BrioletteError where the model cannot be run, or was not made for such lengths.
    """
    longest, limit = max(each.length for each in documents), context_length(file.header)
    if limit is not None and longest > limit:
        raise BrioletteError(
            f"a text of {longest} tokens is longer than the {limit} that the model was made for: smaller --lengths"
        )
    progress = _Progress(telling.bar("reading texts"), len(settings) * len(documents))
    found: list[Found] = []
    try:
        for setting in settings:
            with telling.busy("loading the model"):
                weights = setting.weights or (found[0].loaded.weights if found else None)  # all as the first does
                model = load(file, kv=setting.kv, weights=weights, prefill=setting.prefill, context=longest, **options)
            with closing(model):
                loaded = Setting(model.options.cache, model.options.weights, model.options.prefill)
                answers = tuple(_answers(model, document, progress) for document in documents)
                found.append(Found(loaded, bits_of(model), answers))
    finally:
        progress.bar.close()
    return found


def _answers(model: Model, document: Document, progress: _Progress) -> tuple[Answer, ...]:
    """Every question from the end of the document, which is read once."""
    model.cached = []
    model.engine.step(document.ids, 0)
    restore, found = model.engine.checkpoint(), []
    for question in document.questions:
        found.append(_answer(model, len(document.ids), question))
        restore()
    progress.step()
    return tuple(found)


def _answer(model: Model, start: int, question: Question) -> Answer:
    """The answer's tokens are given one after the other, as if each had been right: where each is the likeliest, the
    model writes them of itself."""
    answer = np.array(question.answer)
    ids = (*question.asked, *question.answer[:-1])
    logits = model.engine.step(ids, start, "all")[-len(answer) :].astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    totals = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    surprise = totals - logits[np.arange(len(answer)), answer]
    return Answer(bool((logits.argmax(axis=1) == answer).all()), float(surprise.sum()))
