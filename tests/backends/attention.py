"""Runs emitted attention over planes that a test has laid out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from briolette.backends.cpu.build import Target
from briolette.backends.cpu.kernels import attend_many, attend_one, attend_parts
from briolette.backends.cpu.kernels.attend import Attend

GUARD = np.float32(7e7)  # what must stay untouched around a result
MAIN = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 4
NEAR = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]


EMIT = {
    "one": attend_one.emit_attend_one,
    "merge": attend_parts.emit_merge,
    "many": attend_many.emit_attend_many,
}


@lru_cache(None)
def compiled(spec: Attend, target: Target, names: tuple[str, ...] = tuple(EMIT)):
    """The functions of some names, and the engine that keeps their code."""
    module = ir.Module()
    module.triple = target.triple
    for name in names:
        EMIT[name](module, target, name, spec)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, target.machine())
    engine.finalize_object()
    many = MAIN + NEAR * spec.near
    merge = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
    kinds = {"one": [*many, ctypes.c_void_p], "merge": merge, "many": many}
    return engine, {n: ctypes.CFUNCTYPE(None, *kinds[n])(engine.get_function_address(n)) for n in names}


def run(
    spec: Attend,
    target: Target,
    q: np.ndarray,
    planes: Sequence[np.ndarray],
    capacity: int,
    positions: np.ndarray,
    slots: np.ndarray,
    threads: int,
    near: Sequence[np.ndarray] = (),
    near_capacity: int = 0,
) -> np.ndarray:
    """One step of the rows of q [rows, q_stride] as `threads` threads in turn: [rows, heads, value size]. Nothing but
    that is written."""
    rows = len(positions)
    shape = (rows, spec.heads, spec.value_size)
    out = np.full(int(np.prod(shape)) + 32, GUARD)
    stride = -(-max(attend_parts.own_layout(spec)[1], attend_many.layout(spec)[1]) // 64) * 64 + 64
    scratch = np.full((threads, stride // 4), np.nan, np.float32)
    scratch[:, -16:] = GUARD
    parts = np.full(attend_parts.layout(spec)[1] // 4 + 16, np.nan, np.float32)
    parts[-16:] = GUARD
    integers, alone = spec.query_bits or spec.weight_bits, len(set(slots.tolist())) == rows
    names = ("one", "merge") if integers and alone else tuple(EMIT)  # `many` has but one form, which others test
    _, call = compiled(spec, target, names)
    given = [a.ctypes.data for a in (q, *planes, positions, slots)] + [out[16:].ctypes.data]
    beside = [*(a.ctypes.data for a in near), near_capacity] if spec.near else []
    for name in names:
        for tid in range(threads):
            own = scratch[tid].ctypes.data
            if name == "merge":
                call[name](out[16:].ctypes.data, own, parts.ctypes.data, tid, threads)
            else:
                kept = [parts.ctypes.data] if name == "one" else []
                call[name](*given, own, capacity, rows, tid, threads, *beside, *kept)
            scratch[tid, :-16] = np.nan
    assert np.all(out[:16] == GUARD)
    assert np.all(out[-16:] == GUARD)
    assert np.all(scratch[:, -16:] == GUARD)
    assert np.all(parts[-16:] == GUARD)
    return out[16:-16].reshape(shape)
