"""A policy for a model's cache under a budget: sensitivities measured, types chosen, the chosen policies measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from briolette.backends.base import Options, Source
from briolette.compiler.codecs import is_codec
from briolette.compiler.errors import BrioletteError
from briolette.compiler.policy import PRESETS, policy_named
from briolette.engine.backends import backend_named
from briolette.engine.evaluation.figures import Divergence, divergence
from briolette.engine.evaluation.windows import Windows
from briolette.engine.gguf import GgufFile
from briolette.engine.model import options_for
from briolette.engine.source import source_of
from briolette.engine.telling import Telling
from briolette.engine.words import size

from .choice import Predictions, budgets, choose
from .costs import CODECS, PLAIN, Choice, Costs, Side, costs_of, possible
from .reading import EXACT, Reading


@dataclass(frozen=True)
class Asked:
    """What a policy is wanted for: bytes of cache at `context` positions; codecs that are measured; how many points of
    the frontier are; windows for sensitivities, and as many more for the frontier where there are such."""

    budget: int
    codecs: tuple[str, ...]
    points: int
    sink: int
    recent: int
    windows: Windows
    chunks: int


@dataclass(frozen=True)
class Row:
    """A policy that was measured. bytes: of the whole cache. predicted: the sum of its sides' divergences; None where
    it has what was not measured. name: of a preset. chosen: whether it is the one for the budget."""

    policy: str
    bytes: int
    predicted: float | None
    found: Divergence
    name: str | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Tuned:
    """plain: bytes of the cache in f16; values: how many it keeps. sensitivities: mean divergence of every side, by the
    codec that it alone was kept in. rows: presets and the frontier. apart: whether other windows measured these."""

    plain: int
    context: int
    sensitivities: Mapping[Side, Mapping[str, float]]
    rows: tuple[Row, ...]
    apart: bool

    @property
    def chosen(self) -> Row:
        return next(row for row in self.rows if row.chosen)


def tune(file: GgufFile, asked: Asked, context: int | None, options: dict[str, Any], telling: Telling) -> Tuned:
    """Measures, chooses and measures again. options: of `load`. Raises BrioletteError for a budget that is too small,
    and where the model cannot be run."""
    backend = options["backend"]
    with telling.busy("compiling"):
        source = source_of(options["spec"], file.header)
        made = options_for(file, PLAIN, options["threads"], context, options["chunk"], made=source)
        costs = costs_of(source, made, backend, asked.sink, asked.recent)
    least = _check(costs, asked.budget)
    sides = [side for side, types in costs.sides.items() if len(types) > 1]
    apart = len(asked.windows) > asked.chunks
    first, second = slice(0, asked.chunks), slice(asked.chunks if apart else 0, None)
    wanted = sorted({asked.budget, *budgets(costs, least, asked.points)})
    bar, done = telling.bar("reading windows"), 0
    passes = len(asked.windows) + len(sides) * len(asked.codecs) * len(asked.windows.ids[first])
    presets = [name for name in PRESETS if possible(source, name)]
    passes += (len(wanted) + len(presets)) * len(asked.windows.ids[second])

    def progress() -> None:
        nonlocal done
        done += 1
        bar(done, passes)

    reading = Reading(file, asked.windows, options, telling, progress)
    try:
        found: dict[Side, dict[str, float]] = {side: {} for side in sides}
        for side in sides:
            for codec in asked.codecs:
                policy = costs.spelled(_alone(side, codec), otherwise=EXACT)
                found[side][codec] = float(reading.read(policy, first)[1].kl.mean())
        predictions = Predictions(costs, found)
        rows = []
        for name in presets:
            rows.append(_row(reading, source, made, backend, predictions, name, second, name=name))
        for budget in wanted:
            policy = costs.spelled(choose(predictions, budget))
            if all(row.policy != policy for row in rows):
                rows.append(_row(reading, source, made, backend, predictions, policy, second))
        best = costs.spelled(choose(predictions, asked.budget))
    finally:
        bar.close()
    rows = [replace(row, chosen=row.policy == best) for row in rows]
    return Tuned(costs.whole, made.context, found, tuple(sorted(rows, key=lambda row: row.bytes)), apart)


def _check(costs: Costs, budget: int) -> int:
    """Bytes of the cheapest choice. Raises BrioletteError where the budget is smaller."""
    cheapest = {side: min(types, key=types.__getitem__) for side, types in costs.sides.items()}
    least = costs.bytes(cheapest)
    if budget < least:
        raise BrioletteError(f"the cache takes {size(least)} at least, more than the {size(budget)} of --memory")
    return least


def _alone(side: Side, codec: str) -> Choice:
    """One side in a codec, the other of its layer exact."""
    slot, plane = side
    return {(slot, each): codec if each == plane else EXACT for each in ("k", "v")}


def _row(
    reading: Reading,
    source: Source,
    made: Options,
    backend: str,
    predictions: Predictions,
    policy: str,
    parts: slice,
    name: str | None = None,
) -> Row:
    exact, other = reading.read(policy, parts)
    taken = backend_named(backend).memory(source, policy)(replace(made, cache=policy))
    windows = len(reading.windows.ids[parts])
    predicted = _predicted(source, predictions, policy)
    planes = sum(plane.bytes for plane in taken.planes)
    return Row(policy, planes, predicted, divergence(other, exact, windows), name)


def _predicted(source: Source, predictions: Predictions, policy: str) -> float | None:
    """The sum of a policy's divergences; None where it has types of unknown error, or keeps other positions in bf16
    than those that were measured."""
    of = policy_named(policy)
    if f";sink={of.sink};recent={of.recent}" != predictions.costs.suffix:
        return None
    keeps = of.keeps(source.module)
    choice = {(slot, plane): getattr(keep, plane) for slot, keep in keeps.items() for plane in ("k", "v")}
    if any(is_codec(name) and name not in CODECS for name in choice.values()):
        return None
    return predictions.total(choice)
