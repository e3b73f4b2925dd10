"""How far other logits are from a model's own, streamed over the vocabulary: no array of all logits is needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Score:
    """One set of logits against the right next tokens and a model's own logits.

    kl: mean of KL(own || these) over positions, in nats. agreement: share of positions whose likeliest token is
    the same. perplexity: exp of the mean of -log p of the right token. Infinite where logits are no numbers.
    """

    kl: float
    agreement: float
    perplexity: float


@dataclass(frozen=True)
class Positions:
    """The same of every position, one by one.

    surprise: float64[N], -log p of the right token, in nats. kl: float64[N], KL(own || these), in nats. top: int64[N],
    the likeliest token. Rounding may leave a divergence of zero a little below it.
    """

    surprise: Array
    kl: Array
    top: Array

    def score(self, own: Positions) -> Score:
        """Over all of them, `own` being those of the model's own logits."""
        kl, agreement = float(np.mean(self.kl)), float(np.mean(own.top == self.top))
        return Score(max(kl, 0.0) if math.isfinite(kl) else math.inf, agreement, _exp(float(np.mean(self.surprise))))


def joined(parts: Sequence[Positions]) -> Positions:
    """Positions after one another."""
    return Positions(*(np.concatenate([getattr(part, f) for part in parts]) for f in ("surprise", "kl", "top")))


class _Tally:
    """What is kept of the logits seen so far: per position the largest and where, the sum of exps, the right one's."""

    def __init__(self, targets: Array):
        self.targets, self.each = targets, np.arange(len(targets))
        self.largest = np.full(len(targets), -np.inf)
        self.top = np.zeros(len(targets), np.int64)
        self.total = np.zeros(len(targets))  # of exp(logit - largest)
        self.right = np.full(len(targets), np.nan)

    def take(self, part: Array, start: int) -> tuple[Array, Array]:
        """Adds logits [positions, ids] of the ids from `start`. Gives exp(logit - largest) of these, and what
        sums over earlier ones are to be multiplied by."""
        best = part.argmax(axis=1)
        value = part[self.each, best].astype(np.float64)
        self.top = np.where(value > self.largest, best + start, self.top)
        largest = np.maximum(self.largest, value)
        faded = np.exp(self.largest - largest)
        shares = np.exp(part - largest[:, None].astype(part.dtype))
        self.total = self.total * faded + shares.sum(axis=1, dtype=np.float64)
        self.largest = largest
        here = (self.targets >= start) & (self.targets < start + part.shape[1])
        self.right[here] = part[self.each[here], self.targets[here] - start]
        return shares, faded

    @property
    def log_total(self) -> Array:
        """log of the sum of exps of all logits."""
        found: Array = self.largest + np.log(self.total)
        return found


def scores(parts: Iterable[Sequence[Array]], targets: Sequence[int] | Array) -> list[Score]:
    """Each set of logits against the first, which is the model's own: `positions` of these arguments, in one number."""
    found = positions(parts, targets)
    return [each.score(found[0]) for each in found]


def positions(parts: Iterable[Sequence[Array]], targets: Sequence[int] | Array) -> list[Positions]:
    """Each set of logits against the first, which is the model's own, at every position.

    parts: for one range of token ids after the other, logits [positions, ids] of every set. targets: the right
    next token of every position.
    """
    tallies: list[_Tally] = []
    gaps: list[Array] = []  # of each set: the sum of exp(own - largest) * (own - other)
    start = 0
    for own, *others in parts:
        if not tallies:
            tallies = [_Tally(np.asarray(targets)) for _ in (own, *others)]
            gaps = [np.zeros(len(own)) for _ in (own, *others)]
        with np.errstate(all="ignore"):
            shares, faded = tallies[0].take(own, start)
            for place, other in enumerate(others, 1):
                tallies[place].take(other, start)
                gap = (shares * (own - other)).sum(axis=1, dtype=np.float64)
                gaps[place] = gaps[place] * faded + gap
        start += own.shape[1]
    with np.errstate(all="ignore"):
        return [_positions(tallies[0], tally, gap) for tally, gap in zip(tallies, gaps, strict=True)]


def _positions(own: _Tally, other: _Tally, gap: Array) -> Positions:
    """KL = E[own - other] + log sum exp(other) - log sum exp(own), the expectation by the own distribution."""
    kl = gap / own.total + other.log_total - own.log_total
    return Positions(other.log_total - other.right, kl, other.top)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf  # a NaN compares as false: infinite, too
