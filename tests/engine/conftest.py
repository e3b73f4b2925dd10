"""What tests of commands share."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from briolette.engine.telling import Telling


class Interrupted:
    """A progress bar at which a person presses Ctrl-C."""

    def __init__(self, closed: list[str]):
        self.closed = closed

    def __call__(self, done: int, wanted: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed.append("bar")


@pytest.fixture
def closed() -> list[str]:
    """What an interruption has closed, in order."""
    return []


@pytest.fixture
def interrupted(closed: list[str]) -> Telling:
    """Tells nothing, and interrupts the work when three parts of it are done."""
    return Telling(lambda message: nullcontext(), lambda message: Interrupted(closed))
