"""One evaluation of one model on windows of a text: our caches, one after the other, and a peer's beside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.divergence import Positions
from briolette.engine.gguf import GgufFile
from briolette.engine.model import Model, context_length, load
from briolette.engine.telling import Telling

from .cache_bits import bits_of, bits_of_peer
from .peer import Peer
from .scoring import score
from .subjects import Ours, Subject
from .windows import Windows


@dataclass(frozen=True)
class Setting:
    """How one of our engines is loaded: `kv`, `weights` and `prefill` as `load` takes them."""

    kv: str | None = None
    weights: str | None = None
    prefill: str = "exact"


@dataclass(frozen=True)
class Beside:
    """A peer to measure beside ours: the Python that has it, its caches' types, and the one that is its baseline."""

    name: str
    python: Path
    caches: tuple[str, ...]
    base: str = "f16"


@dataclass(frozen=True)
class Row:
    """One cache's positions, with those of its baseline where there is one. bits: of memory for a value it keeps.
    loaded: how, where it is ours."""

    engine: str
    kv: str
    bits: float | None
    found: Positions
    base: Positions | None
    loaded: Setting | None = None


@dataclass
class Evaluated:
    """base: how our baseline was loaded. peers: their versions."""

    rows: list[Row] = field(default_factory=list)
    base: Setting | None = None
    peers: dict[str, str] = field(default_factory=dict)


def evaluate(
    file: GgufFile,
    windows: Windows,
    settings: Sequence[Setting],
    base: Setting | None,
    options: dict[str, Any],
    telling: Telling,
    beside: Beside | None = None,
) -> Evaluated:
    """Scores every window with each of the settings, beside a baseline where one is given.

    options: of `load`, of all. A baseline runs again beside each setting, so that no more than two engines and the
    logits of a few positions are in memory. Raises BrioletteError where the model or the peer cannot be run.
    """
    limit = context_length(file.header)
    if limit is not None and windows.size > limit:
        raise BrioletteError(
            f"a window of {windows.size} tokens is longer than the {limit} that the model was made for: a smaller --ctx"
        )
    passes = (len(settings) + (len(beside.caches) if beside is not None else 0)) * (1 if base is None else 2)
    bar, done = telling.bar("reading windows"), 0

    def progress() -> None:
        nonlocal done
        done += 1
        bar(done, passes * len(windows))

    evaluated, run = Evaluated(), _Run(file, windows, options, telling, progress)
    try:
        run.ours(evaluated, settings, base)
        if beside is not None:
            run.peer(evaluated, beside, base is not None)
    finally:
        bar.close()
    return evaluated


class _Run:
    def __init__(self, file: GgufFile, windows: Windows, options: dict[str, Any], telling: Telling, progress: Any):
        self.file, self.windows, self.options = file, windows, options
        self.telling, self.progress = telling, progress
        self.threads, self.vocabulary = 1, 0

    def ours(self, evaluated: Evaluated, settings: Sequence[Setting], base: Setting | None) -> None:
        first: Ours | None = None
        try:
            if base is not None:
                first = Ours(self.load(base))
                evaluated.base = _loaded(first.model)
                # All keep weights as the baseline does where nothing else is asked for.
                settings = [replace(s, weights=s.weights or first.model.options.weights) for s in settings]
            for setting in settings:
                with closing(Ours(self.load(setting))) as ours:
                    positions = self.score([first, ours] if first is not None else [ours])
                    bits = bits_of(ours.model)
                    of = positions[0] if first is not None else None
                    row = Row(ours.engine, ours.kv, bits, positions[-1], of, _loaded(ours.model))
                    evaluated.rows.append(row)
        finally:
            if first is not None:
                first.close()

    def load(self, setting: Setting) -> Model:
        """The model, in a context of one window."""
        with self.telling.busy("loading the model"):
            model = load(
                self.file,
                kv=setting.kv,
                weights=setting.weights,
                prefill=setting.prefill,
                context=self.windows.size,
                **self.options,
            )
        self.threads, self.vocabulary = model.options.threads, model.vocabulary
        return model

    def peer(self, evaluated: Evaluated, beside: Beside, based: bool) -> None:
        path, size = self.file.shards[0], self.windows.size
        with self.telling.busy(f"loading the model with {beside.name}"):
            peer = Peer(beside.name, beside.python, path, self.threads, size, self.vocabulary)
        with closing(peer):
            evaluated.peers[peer.name] = peer.version
            for kv in beside.caches:
                cache = peer.cache(kv)
                positions = self.score([peer.cache(beside.base, "base"), cache] if based else [cache])
                of = positions[0] if based else None
                evaluated.rows.append(Row(cache.engine, kv, bits_of_peer(kv), positions[-1], of))

    def score(self, subjects: Sequence[Subject]) -> list[Positions]:
        return score(subjects, self.windows, self.threads, self.progress)


def _loaded(model: Model) -> Setting:
    return Setting(model.options.cache, model.options.weights, model.options.prefill)
