"""A model's last predictions in some windows of a text, beside those with an exact cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.engine.divergence import Positions, joined
from briolette.engine.evaluation.scoring import scored
from briolette.engine.evaluation.windows import Windows
from briolette.engine.gguf import GgufFile
from briolette.engine.model import Model, load
from briolette.engine.telling import Telling

SCORED = 64  # predictions at the end of a window: those that see most of the cache, at the price of few logits
EXACT = "f32"


@dataclass
class Reading:
    """Windows that are read with one policy after the other, an engine at a time.

    Logits with the exact cache are read first and kept: float32[windows, SCORED, V]. Raises BrioletteError where the
    model cannot be run.
    """

    file: GgufFile
    windows: Windows
    options: dict[str, Any]  # of `load`; weights are kept as with the first engine
    telling: Telling
    progress: Callable[[], None]  # called after every window
    base: list[NDArray[np.float32]] = field(default_factory=list)

    def read(self, kv: str, parts: slice) -> tuple[Positions, Positions]:
        """The exact cache's positions and a policy's, in some of the windows."""
        if not self.base:
            with closing(self._load(EXACT)) as model:
                self.options = self.options | {"weights": model.options.weights}
                for ids in self.windows:
                    self.base.append(self._logits(model, ids).copy())
                    self.progress()
        found: list[list[Positions]] = []
        with closing(self._load(kv)) as model, ThreadPoolExecutor(model.options.threads) as pool:
            for ids, base in list(zip(self.windows, self.base, strict=True))[parts]:
                found.append(scored(pool, (base, self._logits(model, ids)), ids[-len(base) :]))
                self.progress()
        exact, other = (joined(each) for each in zip(*found, strict=True))
        return exact, other

    def _load(self, kv: str) -> Model:
        with self.telling.busy("loading the model"):
            return load(self.file, kv=kv, context=self.windows.size, prefill="exact", **self.options)

    def _logits(self, model: Model, ids: list[int]) -> NDArray[np.float32]:
        """Of the last predictions whose right token is in the window."""
        model.cached = []
        first = max(0, self.windows.size - 1 - min(SCORED, self.windows.size - 1 - self.windows.first))
        model.engine.step(ids[:first], 0)
        return model.engine.step(ids[first:-1], first, "all")
