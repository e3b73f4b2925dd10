"""Windows of a text through one or two engines side by side, so that only a few positions' logits are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np

from briolette.engine.divergence import Positions, joined, positions

from .subjects import Logits, Subject
from .windows import Windows

PART = 4096  # token ids looked at together: of a few positions these stay in the processor's caches
TOGETHER = 8  # positions

Progress = Callable[[], None]


def score(subjects: Sequence[Subject], windows: Windows, threads: int, progress: Progress) -> list[Positions]:
    """Every scored position of each subject, beside the first; `progress` is called after every window of each."""
    found: list[list[Positions]] = [[] for _ in subjects]
    with ThreadPoolExecutor(threads) as pool:
        for ids in windows:
            at = windows.first
            for pieces in zip(*(s.logits(ids[:-1], windows.first) for s in subjects), strict=True):
                right = ids[at + 1 : at + 1 + len(pieces[0])]
                for of, part in zip(found, scored(pool, pieces, right), strict=True):
                    of.append(part)
                at += len(right)
            for _ in subjects:
                progress()
    return [joined(parts) for parts in found]


def scored(pool: Executor, logits: Sequence[Logits], right: Sequence[int]) -> list[Positions]:
    """Positions of several subjects' logits [positions, V], beside the first's, with the right next tokens. They are
    shared among threads: numpy lets go of Python's lock."""

    def of(at: int) -> list[Positions]:
        rows = [each[at : at + TOGETHER] for each in logits]
        parts = ([each[:, ids : ids + PART] for each in rows] for ids in range(0, rows[0].shape[1], PART))
        return positions(parts, np.asarray(right[at : at + TOGETHER]))

    pieces = list(pool.map(of, range(0, len(right), TOGETHER)))
    return [joined(parts) for parts in zip(*pieces, strict=True)]
