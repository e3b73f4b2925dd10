"""What is evaluated: anything that tells logits of a window's later tokens, a few positions at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from briolette.engine.model import Model

Logits = NDArray[np.float32]
ROWS = 64  # positions whose logits are there at once: with a large vocabulary they are most of the memory


class Subject(Protocol):
    """An engine, or another program's, with a cache of some type."""

    engine: str  # its name
    kv: str  # the type or policy of its cache

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """Logits float32[n, V] after each token from ids[first] on, in a fresh context, n of `ROWS` or what is left.
        They may be overwritten when the next are asked for."""
        ...

    def close(self) -> None: ...


class Ours:
    """A loaded model. Cached positions of earlier windows are forgotten."""

    engine = "briolette"

    def __init__(self, model: Model):
        self.model = model

    @property
    def kv(self) -> str:
        return self.model.options.cache

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See `Subject`."""
        self.model.cached = []
        if first:
            self.model.engine.step(ids[:first], 0)
        for at in range(first, len(ids), ROWS):
            yield self.model.engine.step(ids[at : at + ROWS], at, "all")

    def close(self) -> None:
        self.model.close()
