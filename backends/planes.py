"""What all engines' planes of the KV cache have in common, and what their rings still hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from .base import Options, PlaneMemory, TokenRows


@dataclass(frozen=True)
class CachePlane(ABC):
    """A plane of the KV cache: [heads, capacity, size] of dtype, read with a window or without. Of a near plane the
    window is what counts as recent; the first `sink` positions stay."""

    slot: int
    plane: str
    heads: int
    size: int
    dtype: str
    window: int | None
    sink: int = 0

    @property
    @abstractmethod
    def token_bytes(self) -> int:
        """What a position takes."""

    @property
    @abstractmethod
    def whole(self) -> int:
        """Positions that it holds a multiple of."""

    def positions(self, options: Options) -> int:
        """All positions, or a ring that holds a window and the chunk being written behind those that stay."""
        ring = options.context if self.window is None else self.window + options.chunk
        held = max(min(options.context, self.sink + ring), self.sink + 1)
        return -(-held // self.whole) * self.whole

    def ring(self, options: Options) -> int:
        """Positions behind those that stay."""
        return self.positions(options) - self.sink

    def memory(self, options: Options) -> PlaneMemory:
        """The plane as it is allocated."""
        held = self.positions(options)
        return PlaneMemory(self.slot, self.plane, self.token_bytes, held, self.window, options.sequences)


class Rings:
    """The first position that a ring of each length still holds of a sequence. It does not go back when a sequence is
    rewound: what a ring has overwritten is lost."""

    def __init__(self, options: Options, oldest: dict[tuple[int, int], int] | None = None):
        self.options, self.oldest = options, dict(oldest or {})

    def copy(self) -> Rings:
        return Rings(self.options, self.oldest)

    def write(self, rows: TokenRows, planes: Iterable[CachePlane]) -> None:
        """What is forgotten with a step, to be said before it: after an interruption it may or may not have been."""
        lengths = {plane.ring(self.options) for plane in planes}
        for sequence, mine in rows.each():
            start, end = int(rows.positions[mine[0]]), int(rows.positions[mine[-1]]) + 1
            for ring in lengths:
                before = self.oldest.get((sequence, ring), 0)
                self.oldest[sequence, ring] = max(min(before, start), end - ring)

    def hold(self, end: int, to: int, sequence: int, planes: Iterable[CachePlane]) -> bool:
        """Whether every ring still holds the window before `to`, with `end` positions written."""
        rings = {(p.window, p.ring(self.options)) for p in planes if p.window is not None}
        return to <= end and all(
            self.oldest.get((sequence, ring), 0) <= max(0, to - window + 1) for window, ring in rings
        )
