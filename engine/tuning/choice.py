"""Types for every side of every layer: the least predicted divergence for the bytes.

Divergences of sides are taken to add up, as those of small independent errors do. Then, for any price of a byte, the
best type of each side is on the lower hull of its own points (bytes, divergence): Lagrange's method for choices that
only share a budget (Everett 1963). Going through the steps of all hulls, the most divergence for a byte first, gives
the best choice for every budget at which a step ends; what is left of a budget goes to later steps that still fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from .costs import Choice, Costs, Side

LEAST = 1e-12  # of a divergence: one that is measured as nothing, or less, is no less than that

Measured = Mapping[Side, Mapping[str, float]]  # mean divergence with one side coded alone, by the codec


@dataclass(frozen=True)
class Predictions:
    """Divergences of any type of any side, from those of a few.

    Between two codecs that were measured, log divergence is a straight line over the log of their error D, and beyond
    the coarsest it goes on so. Below the finest, divergence goes with D: it has no first-order term where it is least.
    """

    costs: Costs
    measured: Measured

    def of(self, side: Side, name: str) -> float:
        """Mean divergence, in nats, with this type in this side alone."""
        points = sorted((self.costs.error(side, codec), max(LEAST, kld)) for codec, kld in self.measured[side].items())
        error, (finest, least) = self.costs.error(side, name), points[0]
        if error <= finest or len(points) == 1:
            return least * error / finest
        place = next((i for i, (at, _) in enumerate(points) if at >= error), len(points) - 1)
        (a, low), (b, high) = points[place - 1], points[place]
        return math.exp(math.log(low) + math.log(high / low) * math.log(error / a) / math.log(b / a))

    def total(self, choice: Choice) -> float:
        return sum(self.of(side, name) for side, name in choice.items() if side in self.measured)


@dataclass(frozen=True)
class _Step:
    """From one point of a side's hull to the next: what it gains for each byte."""

    side: Side
    place: int
    to: str
    rate: float


def hull(points: Mapping[str, tuple[int, float]]) -> list[str]:
    """The names of points (bytes, divergence) on the lower hull, the cheapest first; divergence falls along it."""
    found: list[str] = []
    for name in sorted(points, key=lambda n: points[n]):
        if found and points[name][1] >= points[found[-1]][1]:
            continue
        while len(found) > 1 and _slope(points, found[-2], found[-1]) <= _slope(points, found[-1], name):
            found.pop()
        found.append(name)
    return found


def _slope(points: Mapping[str, tuple[int, float]], a: str, b: str) -> float:
    """What divergence falls by, for each byte."""
    return (points[a][1] - points[b][1]) / (points[b][0] - points[a][0])


def choose(predictions: Predictions, budget: int) -> dict[Side, str]:
    """The best choice within a budget of bytes, which is at least that of the cheapest."""
    costs = predictions.costs
    choice, steps = {}, []
    for side, types in costs.sides.items():
        points = {n: (b, predictions.of(side, n) if side in predictions.measured else 0.0) for n, b in types.items()}
        names = hull(points)
        choice[side] = names[0]
        for place, (a, b) in enumerate(pairwise(names)):
            steps.append(_Step(side, place, b, _slope(points, a, b)))
    taken: dict[Side, int] = dict.fromkeys(choice, 0)
    for step in sorted(steps, key=lambda s: (-s.rate, s.side, s.place)):
        tried = choice | {step.side: step.to}
        if taken[step.side] == step.place and costs.bytes(tried) <= budget:
            choice, taken[step.side] = tried, step.place + 1
    return choice


def budgets(costs: Costs, least: int, count: int) -> list[int]:
    """So many budgets, in even ratios from the cheapest cache to half of f16."""
    most = max(least, costs.whole // 2)
    return [round(least * (most / least) ** (i / max(1, count - 1))) for i in range(count)]
