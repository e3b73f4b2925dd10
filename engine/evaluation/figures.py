"""What positions come to: means with their errors, and percentiles. The definitions are llama.cpp's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.engine.divergence import Positions

Array = NDArray[Any]
PERCENTILES = {"median": 50.0, "p99": 99.0, "p999": 99.9}
RESAMPLES, SEED = 2000, 1
CONFIDENCE = 95.0  # per cent


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, as if positions did not depend on each other; 0 for a single one.

    interval: where 95 % of the means lie when windows, not positions, are drawn again (a bootstrap): what neighbours
    have in common does not make it narrower. None for a single window.
    """

    mean: float
    error: float
    interval: tuple[float, float] | None

    def exp(self) -> Estimate:
        """Of the exponential, as a perplexity is of a mean."""
        mean = _exp(self.mean)
        ends = None if self.interval is None else (_exp(self.interval[0]), _exp(self.interval[1]))
        return Estimate(mean, mean * self.error, ends)


def estimate(values: Array, windows: int) -> Estimate:
    """The mean of values of positions, as many in each window, one window after the other."""
    error = math.sqrt(float(np.var(values)) / (len(values) - 1)) if len(values) > 1 else 0.0
    interval = None
    if windows > 1:
        means = values.reshape(windows, -1).mean(axis=1)
        drawn = np.random.default_rng(SEED).integers(0, windows, (RESAMPLES, windows))
        low, high = np.percentile(means[drawn].mean(axis=1), (50 - CONFIDENCE / 2, 50 + CONFIDENCE / 2))
        interval = float(low), float(high)
    return Estimate(float(np.mean(values)), error, interval)


def perplexity(found: Positions, windows: int) -> Estimate:
    """exp of the mean of -log p of the right token."""
    return estimate(found.surprise, windows).exp()


@dataclass(frozen=True)
class Divergence:
    """Predictions beside those of a baseline.

    kld: KL(baseline || these), in nats. percentiles: of it, by the names of `PERCENTILES`; highest: the largest.
    same_top: share of positions whose likeliest token is the same. ppl, base_ppl: perplexities; ratio: of the two, with
    the error of the difference of their logarithms, most of which they have in common.
    """

    kld: Estimate
    percentiles: Mapping[str, float]
    highest: float
    same_top: Estimate
    ppl: Estimate
    base_ppl: Estimate
    ratio: Estimate


def divergence(found: Positions, base: Positions, windows: int) -> Divergence:
    """Positions of some windows beside a baseline's of the same."""
    named = zip(PERCENTILES, np.percentile(found.kl, list(PERCENTILES.values())), strict=True)
    return Divergence(
        kld=estimate(found.kl, windows),
        percentiles={name: float(value) for name, value in named},
        highest=float(found.kl.max()),
        same_top=estimate((found.top == base.top).astype(np.float64), windows),
        ppl=perplexity(found, windows),
        base_ppl=perplexity(base, windows),
        ratio=estimate(found.surprise - base.surprise, windows).exp(),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
