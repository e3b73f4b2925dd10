"""How a person sees that something goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Told (done, wanted); closed at the end."""

    def __call__(self, done: int, wanted: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Telling:
    """busy: of what takes a moment. bar: of what has steps to count."""

    busy: Callable[[str], AbstractContextManager[None]]
    bar: Callable[[str], Progress]
