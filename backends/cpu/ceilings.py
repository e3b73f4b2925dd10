"""What this machine can do at most, measured with native code: reading memory, and multiplying bytes and floats.

The kernels do what those of a model do in their inner loops, and nothing else: a stream over memory with prefetches,
and multiply-adds whose operands are in the nearest cache.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from briolette.compiler.tiles import TILE

from .build import F32, I32, I64, PTR, Build, Target, Value
from .jit import Library, compile_object
from .pack import aligned
from .packing import AHEAD, LINE, WORD
from .quads import emit_dot4
from .store import kept, key_of

STREAMS, SPAN = 4, 256  # that a thread reads side by side; bytes of each in a turn
NEAR = 8192  # bytes that multiplications read their operands from: a part of the nearest cache
BYTES_BITS = 7  # of a weight's byte: what the packed formats have at most where AVX2 multiplies pairs
LEAST, MOST = 256 << 20, 2 << 30  # bytes to read: more than caches hold, no more than small machines have
CACHES = 8  # times the last cache

TRIES, SECONDS = 5, 0.02  # tries of about so long; the best counts, since what else runs only slows some down
SIGNATURE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)


@dataclass(frozen=True)
class Ceilings:
    """Of `threads` threads together, a second: bytes read from memory, multiply-adds of bytes, and of floats."""

    threads: int
    read: float
    integers: float
    floats: float

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each: what else runs on the machine only lowers them."""
        found = (max(a, b) for a, b in zip(astuple(self), astuple(other), strict=True))
        return Ceilings(*found)


def measure(threads: int, target: Target | None = None) -> Ceilings:
    """The ceilings of this machine for so many threads; takes about half a second."""
    target = target or Target.host()
    library = Library([kept(f"{key_of(target, ['ceilings'])}.o", lambda: code(target))], target)
    run = {name: SIGNATURE(library.address(name)) for name in KERNELS}
    near = [aligned(NEAR) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        turns = memory_size() // threads // SPAN // STREAMS
        far = [aligned(turns * SPAN * STREAMS) for _ in range(threads)]
        list(pool.map(lambda at: at.fill(1), far))  # pages are taken from the system, by the thread that reads them

        def best(kernel: str, memory: list[NDArray[np.uint8]], turns: int) -> float:
            """Turns of a kernel a second, of all threads together."""
            call = run[kernel]

            def once(turns: int) -> float:
                begin = time.perf_counter()
                list(pool.map(lambda at: call(at.ctypes.data, turns), memory))
                return time.perf_counter() - begin

            while kernel != "read" and once(turns) < SECONDS:
                turns *= 2
            return threads * turns / min(once(turns) for _ in range(TRIES))

        return Ceilings(
            threads,
            read=STREAMS * SPAN * best("read", far, turns),
            integers=_dots(target) * TILE * WORD * best("integers", near, 1 << 14),
            floats=_dots(target) * target.lanes * best("floats", near, 1 << 14),
        )


def memory_size() -> int:
    """Bytes that are read: many times what the last cache holds, where the system tells."""
    told = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    try:
        last = int(told.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        last = 0
    return min(MOST, max(LEAST, CACHES * last))


def code(target: Target) -> bytes:
    """Machine code of the kernels."""
    module = ir.Module()
    module.triple = target.triple
    for name, emit in KERNELS.items():
        function = ir.Function(module, ir.FunctionType(I64, [PTR, I64]), name)
        b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
        b.ir.ret(emit(b, *function.args))
    return compile_object(module, target)


# --- kernels: `i64 f(ptr memory, i64 turns)`; the result keeps what was computed from being left out ---------


def _read(b: Build, memory: Value, turns: Value) -> Value:
    """Streams that lie one after the other. Short turns: processors that foresee the addresses of each load
    instruction do so less well where a turn has many of them."""
    lanes, size = b.vec(I32), WORD * b.lanes
    loads = SPAN // size

    def turn(i: Value, carried: list[Value]) -> list[Value]:
        totals = list(carried)
        for stream in range(STREAMS):
            here = b.at(memory, b.mul(b.add(b.mul(turns, stream), i), SPAN))
            b.prefetch(here, AHEAD, span=SPAN)
            for place in range(loads):
                into = (stream * loads + place) % len(totals)
                totals[into] = b.bit_or(totals[into], b.load(here, lanes, place * size, align=size))
        return totals

    return _sum(b, b.loop(0, turns, 1, [ir.Constant(lanes, None)] * 8, turn))


def _integers(b: Build, memory: Value, turns: Value) -> Value:
    """Multiply-adds of four bytes a lane, as the kernels of packed weights do them."""
    wide = b.vec(I32, TILE)

    def dot(total: Value, here: Value, at: int) -> Value:
        weights = b.load(here, wide, LINE * (at % 2), align=LINE)
        x = b.broadcast(here, I32, 2 * LINE + WORD * at, TILE)
        return emit_dot4(b, total, weights, x, BYTES_BITS)

    return _near(b, memory, turns, wide, dot)


def _floats(b: Build, memory: Value, turns: Value) -> Value:
    """Multiply-adds of f32 vectors."""
    wide = b.vec(F32)

    def dot(total: Value, here: Value, at: int) -> Value:
        weights = b.load(here, wide, LINE * (at % 2), align=4)
        x = b.broadcast(here, F32, 2 * LINE + WORD * at)
        return b.fma(weights, x, total)

    return b.ir.fptosi(_near(b, memory, turns, wide, dot), I64)


def _near(b: Build, memory: Value, turns: Value, wide: ir.Type, dot: Callable[[Value, Value, int], Value]) -> Value:
    """`_dots` sums side by side, of operands that lie elsewhere every turn: nothing is the same in two turns, which a
    compiler might take out of the loop."""

    def turn(i: Value, carried: list[Value]) -> list[Value]:
        here = b.at(memory, b.mul(b.bit_and(i, NEAR // LINE // 2 - 1), LINE))
        return [dot(total, here, at) for at, total in enumerate(carried)]

    return _sum(b, b.loop(0, turns, 1, [ir.Constant(wide, None)] * _dots(b.target), turn))


def _dots(target: Target) -> int:
    """Sums that fit into the registers beside their operands."""
    return 16 if target.registers >= 32 else 6


def _sum(b: Build, vectors: list[Value]) -> Value:
    total = vectors[0]
    for vector in vectors[1:]:
        total = b.add(total, vector)
    found = b.reduce_add(total)
    return b.ir.sext(found, I64) if found.type == I32 else found


KERNELS: dict[str, Callable[[Build, Value, Value], Value]] = {
    "read": _read,
    "integers": _integers,
    "floats": _floats,
}
