"""A text cut into windows as llama.cpp's `perplexity` cuts it, so that figures can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError
from briolette.engine.tokenizer import Tokenizer
from briolette.engine.words import many

SHORTEST = 4  # tokens of a window: one is scored


@dataclass(frozen=True)
class Windows:
    """Parts of a text, one after the other, each read by itself.

    ids: int32[windows, size]. What a window's tokens predict is scored from `first` on, so that every prediction
    knows at least half of its window; the last token has none after it. of: how many windows the text has in all.
    """

    ids: NDArray[np.int32]
    of: int

    @property
    def size(self) -> int:
        return int(self.ids.shape[1])

    @property
    def first(self) -> int:
        return self.size // 2

    @property
    def scored(self) -> int:
        """Predictions that count, in all windows."""
        return len(self.ids) * (self.size - 1 - self.first)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.ids.tolist())


def windows(text: str, tokenizer: Tokenizer, size: int, count: int | None = None) -> Windows:
    """The first `count` windows of a text (all by default), of `size` tokens.

    The text is tokenised whole, once, control tokens in it as plain text; where the vocabulary begins texts with BOS,
    the first token of every window gives way to one. What is left at the end is not used. Raises BrioletteError where
    there is not even one window.
    """
    if size < SHORTEST:
        raise BrioletteError(f"a window of {size} tokens is too short: {SHORTEST} are the least")
    ids = tokenizer.encode(text, special=False)
    whole = len(ids) // size
    if not whole:
        raise BrioletteError(
            f"the text has {many(len(ids), 'token')}, and a window takes {size}: give a longer text, or a smaller --ctx"
        )
    used = whole if count is None else min(count, whole)
    cut = np.array(ids[: used * size], np.int32).reshape(used, size)
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        cut[:, 0] = tokenizer.bos_id
    return Windows(cut, whole)
