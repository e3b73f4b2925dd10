"""Where the time of a step goes: a profiled program reads a clock after every kernel call and every barrier.

Every thread adds the ticks since its reading before to a slot of its own: one for each step of the plan, in its order,
then one for the barriers within and after each wave. So the slots of a thread add up to its time in the program.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from briolette.compiler.plan import Plan

from .build import I64, Build, Target, Value
from .jit import Library
from .pack import CACHE_LINE, aligned

TICK = 8  # bytes of a slot
CLOCK = "clock"  # the function by which ticks are compared with seconds


def emit_now(b: Build) -> Value:
    """Ticks of a clock that goes on evenly: x86 counts by its time stamp, others have a steady counter."""
    steady = "cycle" if b.target.triple.startswith(("x86_64", "i686")) else "steady"
    return b.intrinsic(f"llvm.read{steady}counter", I64, [])


def emit_clock(module: ir.Module, target: Target) -> None:
    """`i64 clock()`"""
    function = ir.Function(module, ir.FunctionType(I64, []), CLOCK)
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    b.ir.ret(emit_now(b))


def slots_of(plan: Plan) -> int:
    """Slots of a thread, in whole cache lines: threads write side by side."""
    line = CACHE_LINE // TICK
    return -(-(len(plan.steps) + plan.waves) // line) * line


class Marks:
    """Emits the readings of one program."""

    def __init__(self, b: Build, table: Value, tid: Value, plan: Plan):
        self.b, self.kernels = b, len(plan.steps)
        self.slots = b.at(table, b.mul(tid, TICK * slots_of(plan)))
        self.before = emit_now(b)

    def kernel(self, index: int) -> None:
        """A step's kernel is done."""
        self._add(index)

    def barrier(self, wave: int) -> None:
        """All threads have met after a wave."""
        self._add(self.kernels + wave)

    def _add(self, slot: int) -> None:
        b, now = self.b, emit_now(self.b)
        taken = b.add(b.load(self.slots, I64, TICK * slot, align=TICK), b.sub(now, self.before))
        b.store(taken, self.slots, TICK * slot, align=TICK)
        self.before = now


class Unmarked:
    """In the place of `Marks`, of ordinary programs."""

    def kernel(self, index: int) -> None: ...
    def barrier(self, wave: int) -> None: ...


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
