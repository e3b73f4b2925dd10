"""Where the time of a step goes: a profiled program reads a clock after every kernel call and every barrier.

Every thread adds the ticks since its reading before to a slot of its own: one for each step of the plan, in its order,
then one for the barriers within and after each wave. So the slots of a thread add up to its time in the program.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .jit import Library
from .pack import CACHE_LINE, aligned

if TYPE_CHECKING:
    from briolette.compiler.plan import Plan

TICK = 8  # bytes of a slot
CLOCK = "clock"  # the function by which ticks are compared with seconds


def slots_of(plan: Plan) -> int:
    """Slots of a thread, in whole cache lines: threads write side by side."""
    line = CACHE_LINE // TICK
    return -(-(len(plan.steps) + plan.waves) // line) * line


@dataclass
class Profile:
    """Seconds that one program's kernels took over `steps` steps, and that threads waited.

    kernels: float64 [threads, steps of the plan]; waits: float64 [threads, waves], at the barrier after each. Both are
    there when the profile is over.
    """

    plan: Plan
    threads: int
    steps: int = 0
    table: NDArray[np.int64] = field(init=False)
    kernels: NDArray[np.float64] = field(init=False)
    waits: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.table = aligned(self.threads * slots_of(self.plan), np.int64)

    def finish(self, tick: float) -> None:
        """Turns ticks, of so many seconds, into seconds."""
        seconds = self.table.reshape(self.threads, -1) * tick
        end = len(self.plan.steps)
        self.kernels, self.waits = seconds[:, :end], seconds[:, end : end + self.plan.waves]


class Clock:
    """Compares the ticks of a library's clock with seconds, from when it is made."""

    def __init__(self, library: Library):
        self.library = library  # keeps the code
        self.now = ctypes.CFUNCTYPE(ctypes.c_int64)(library.address(CLOCK))
        self.begin = self.now(), time.perf_counter()

    def tick(self) -> float:
        """Seconds of a tick."""
        ticks, seconds = self.now() - self.begin[0], time.perf_counter() - self.begin[1]
        return seconds / max(1, ticks)
