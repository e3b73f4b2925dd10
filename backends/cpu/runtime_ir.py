"""What programs and threads share in native code: the barrier, the workers' loop."""

from __future__ import annotations

from llvmlite import ir

from .build import I32, I64, PTR, VOID, Build, Target, Value
from .context import FIELDS

SPINS_BEFORE_YIELD = 1024  # a power of two; then the core is offered to whoever else wants it


def runtime_module(target: Target) -> ir.Module:
    """A module with what threads run: `worker` and `start`."""
    module = ir.Module()
    module.triple = target.triple
    emit_worker(module, target)
    emit_start(module, target)
    return module


def _function(
    module: ir.Module, target: Target, name: str, ret: ir.Type, args: list[ir.Type]
) -> tuple[ir.Function, Build]:
    function = ir.Function(module, ir.FunctionType(ret, args), name)
    return function, Build(ir.IRBuilder(function.append_basic_block("entry")), target)


def _pause(b: Build) -> None:
    """Tells the core that this is a spin loop."""
    if b.target.arm:
        b.intrinsic("llvm.aarch64.hint", VOID, [b.i32(1)])
    else:
        b.intrinsic("llvm.x86.sse2.pause", VOID, [])


def _spin(b: Build, address: Value, old: Value, turns: Value | None) -> tuple[Value, Value]:
    """Waits until the counter at `address` is no longer `old`. Gives its value, and whether it changed.

    Without `turns` it waits forever; with it, it gives up after so many. Now and then it offers the core to
    others, for threads may be more than cores.
    """
    function = b.ir.function
    before = b.ir.block
    look, again, done = (function.append_basic_block(n) for n in ("look", "again", "seen"))
    b.ir.branch(look)
    b.ir.position_at_end(look)
    turn = b.ir.phi(I64)
    turn.add_incoming(b.i64(0), before)
    now = b.ir.load_atomic(address, "acquire", 8, typ=I64)
    changed = b.ir.icmp_signed("!=", now, old)
    b.ir.cbranch(changed, done, again)
    b.ir.position_at_end(again)
    _pause(b)
    following = b.add(turn, 1)
    due = b.ir.icmp_unsigned("==", b.bit_and(following, SPINS_BEFORE_YIELD - 1), b.i64(0))
    with b.ir.if_then(due, likely=False):
        b.intrinsic("sched_yield", I32, [])
    if turns is None:
        b.ir.branch(look)
    else:
        b.ir.cbranch(b.ir.icmp_signed("<", following, turns), look, done)
    turn.add_incoming(following, b.ir.block)
    b.ir.position_at_end(done)
    return now, changed


def emit_barrier(module: ir.Module, target: Target) -> ir.Function:
    """`void barrier(ptr context)`: returns when all threads have called it."""
    function, b = _function(module, target, "barrier", VOID, [PTR])
    function.linkage = "internal"
    context = function.args[0]
    threads = b.load(context, I64, FIELDS["threads"].offset, align=8)
    with b.ir.if_then(b.ir.icmp_signed(">", threads, b.i64(1))):
        arrived, passed = (b.at(context, FIELDS[f].offset) for f in ("arrived", "barrier"))
        old = b.ir.load_atomic(passed, "monotonic", 8, typ=I64)
        before_me = b.ir.atomic_rmw("add", arrived, b.i64(1), "acq_rel")
        last = b.ir.icmp_signed("==", before_me, b.sub(threads, 1))
        with b.ir.if_else(last) as (then, otherwise):
            with then:
                b.ir.atomic_rmw("xchg", arrived, b.i64(0), "monotonic")
                b.ir.atomic_rmw("add", passed, b.i64(1), "release")
            with otherwise:
                _spin(b, passed, old, None)
    b.ir.ret_void()
    return function


def _enter(b: Build, program: Value, context: Value, tid: Value) -> None:
    # An integer is cast here because that gives the builder a signature, which an opaque pointer has not.
    signature = ir.FunctionType(VOID, [PTR, I64])
    b.ir.call(b.ir.inttoptr(program, signature.as_pointer()), [context, tid])


def emit_start(module: ir.Module, target: Target) -> ir.Function:
    """`void start(ptr context, i64 program)`: one step, the caller being thread 0; returns when all are done.

    The release makes the program, and all fields written before the call, visible to who sees the generation.
    """
    function, b = _function(module, target, "start", VOID, [PTR, I64])
    context, program = function.args
    b.store(program, context, FIELDS["entry"].offset, align=8)
    b.ir.atomic_rmw("add", b.at(context, FIELDS["generation"].offset), b.i64(1), "release")
    _enter(b, program, context, b.i64(0))
    b.ir.ret_void()
    return function


def emit_worker(module: ir.Module, target: Target) -> ir.Function:
    """`i64 worker(ptr context, i64 tid, i64 seen, i64 spins)`: runs every step started after generation `seen`.

    Returns the last generation it ran when none came for `spins` turns. It can miss none: every program
    ends in a barrier, which lets nobody pass before this thread has come too.
    """
    function, b = _function(module, target, "worker", I64, [PTR, I64, I64, I64])
    context, tid, seen, spins = function.args
    entry = b.ir.block
    wait, work, leave = (function.append_basic_block(n) for n in ("wait", "work", "leave"))
    b.ir.branch(wait)
    b.ir.position_at_end(wait)
    last = b.ir.phi(I64)
    last.add_incoming(seen, entry)
    now, changed = _spin(b, b.at(context, FIELDS["generation"].offset), last, spins)
    b.ir.cbranch(changed, work, leave)
    b.ir.position_at_end(work)
    _enter(b, b.load(context, I64, FIELDS["entry"].offset, align=8), context, tid)
    last.add_incoming(now, work)
    b.ir.branch(wait)
    b.ir.position_at_end(leave)
    b.ir.ret(last)
    return function
