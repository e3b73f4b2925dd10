"""What a profiled program does beside its work: it reads a clock, and adds up what it reads. See `profile`."""

from __future__ import annotations

from llvmlite import ir

from briolette.compiler.plan import Plan

from .build import I64, Build, Target, Value
from .profile import CLOCK, TICK, slots_of


def emit_now(b: Build) -> Value:
    """Ticks of a clock that goes on evenly: x86 counts by its time stamp, others have a steady counter."""
    steady = "cycle" if b.target.triple.startswith(("x86_64", "i686")) else "steady"
    return b.intrinsic(f"llvm.read{steady}counter", I64, [])


def emit_clock(module: ir.Module, target: Target) -> ir.Function:
    """`i64 clock()`"""
    function = ir.Function(module, ir.FunctionType(I64, []), CLOCK)
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    b.ir.ret(emit_now(b))
    return function


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
