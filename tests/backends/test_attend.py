"""Emitted attention against the op table: widths, ring wraps, windows, odd sizes, threads."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import lru_cache

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite import ir
from programs import HOST, RUNNABLE

from briolette.backends.cpu.build import F32, I64, PTR, VOID, Build, Target
from briolette.backends.cpu.kernels import emit_cache_store
from briolette.backends.cpu.kernels.attend import Attend, emit_attend, scratch_bytes
from briolette.compiler.ops import OPS, rounded

BASE = Attend(8, 2, 64, 64, "f32", "f32", 0.125, None, None, 512, False)
GUARD = np.float32(7e7)  # what must stay untouched around a result


@lru_cache(None)
def compiled(spec: Attend, target: Target):
    module = ir.Module()
    module.triple = target.triple
    emit_attend(module, target, "kernel", spec)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, target.machine())
    engine.finalize_object()
    kinds = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 4
    return engine, ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("kernel"))


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded values as the bits that a cache holds."""
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16 if dtype == "f16" else np.float32)


def check(spec: Attend, target: Target, positions: np.ndarray, capacity: int, threads: int, seed: int, size=1.0):
    """Runs one call as `threads` threads in turn and compares with the op table, in double precision."""
    rng = np.random.default_rng(seed)
    rows, length = len(positions), int(positions.max()) + 1
    q = rng.normal(size=(rows, spec.q_stride)).astype(np.float32) * np.float32(size)
    planes, rings = [], []
    for dims, dtype in ((spec.key_size, spec.key_dtype), (spec.value_size, spec.value_dtype)):
        plane = rounded(rng.normal(size=(length, spec.groups, dims)).astype(np.float32), dtype)
        ring = np.full((spec.groups, capacity, dims), 99, np.float32)
        for p in range(max(0, length - capacity), length):
            ring[:, p % capacity] = plane[p]
        planes.append(plane)
        rings.append(stored(ring, dtype))
    heads = q[:, : spec.heads * spec.key_size].reshape(rows, spec.heads, spec.key_size)
    attrs = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap}
    double = [a.astype(np.float64) for a in (heads, *planes)]
    expected = OPS["attend"].evaluate(OpsContext, *double, positions, **attrs)

    out = np.full(expected.size + 32, GUARD)
    needed = scratch_bytes(spec)
    scratch = np.full(needed // 4 + 16, np.nan, np.float32)
    scratch[-16:] = GUARD
    _, call = compiled(spec, target)
    pointers = [a.ctypes.data for a in (q, *rings, positions)]
    for tid in range(threads):
        call(*pointers, out[16:].ctypes.data, scratch.ctypes.data, capacity, rows, tid, threads)
        scratch[:-16] = np.nan
    assert np.all(out[:16] == GUARD)
    assert np.all(out[-16:] == GUARD)
    assert np.all(scratch[-16:] == GUARD)
    # Scores are rounded to f32: an error of e in one changes its weight by a factor 1 + e.
    largest = np.abs(heads).sum(-1).max() * 5 * abs(spec.scale)
    bound = 2e-6 * max(1.0, largest / 16)
    error = np.abs(out[16:-16].reshape(expected.shape) - expected)
    assert error.max() <= bound * max(1.0, np.abs(expected).max())


class OpsContext:
    """`attend` asks nothing of its context."""


@st.composite
def cases(draw):
    groups, share = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 5, 8]))
    size = st.one_of(st.integers(1, 40), st.sampled_from([64, 80, 128]))
    key_size, value_size = draw(size), draw(size)
    dtypes = st.sampled_from(["f32", "f16", "bf16"])
    single, window = draw(st.booleans()), draw(st.one_of(st.none(), st.integers(1, 150)))
    heads = groups * share
    spec = Attend(
        heads=heads,
        groups=groups,
        key_size=key_size,
        value_size=value_size,
        key_dtype=draw(dtypes),
        value_dtype=draw(dtypes),
        scale=draw(st.sampled_from([1.0, 0.125, key_size**-0.5])),
        window=window,
        softcap=draw(st.sampled_from([None, 5.0])),
        q_stride=heads * key_size + draw(st.sampled_from([0, 7])),
        single=single,
    )
    rows = 1 if single else draw(st.integers(1, 90))
    start = draw(st.integers(0, 200))
    positions = np.arange(start, start + rows, dtype=np.int32)
    if draw(st.booleans()):
        positions = positions[np.random.default_rng(rows).permutation(rows)].copy()
    # Without a window the ring holds all; with one, what the first row still sees and all that follow.
    least = start + rows if window is None else min(start + rows, window + rows - 1)
    capacity = least + draw(st.integers(0, 9))
    return spec, positions, capacity, draw(st.integers(1, 5)), draw(st.integers(0, 1 << 30))


@pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)
def test_agrees_with_the_op_table(target):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases())
    def holds(case):
        spec, positions, capacity, threads, seed = case
        check(spec, target, positions, capacity, threads, seed)

    holds()


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("single", [True, False])
def test_any_number_of_threads(single, threads):
    positions = np.arange(30, 31 if single else 63, dtype=np.int32)
    check(replace(BASE, single=single), HOST, positions, 100, threads, 1)


def test_scattered_positions_and_empty_tiles():
    positions = np.array([700, 3, 0, 350, 701, 64, 63, 65], np.int32)
    check(BASE, HOST, positions, 702, 1, 2)
    check(replace(BASE, window=5), HOST, positions, 702, 2, 3)


@pytest.mark.parametrize("capacity", [1, 2, 63, 64, 65, 130])
def test_a_window_as_long_as_the_ring(capacity):
    """Every slot is seen, wherever the ring begins."""
    spec = replace(BASE, window=capacity, single=True)
    for p in (0, capacity - 1, capacity, 2 * capacity + capacity // 3, 1000):
        check(spec, HOST, np.array([p], np.int32), capacity, 1, p)


def test_scores_of_every_size():
    """Peaked softmax: all weight on one position, or exponents that underflow."""
    for size in (1e-3, 10.0, 1000.0):
        check(BASE, HOST, np.arange(90, 130, dtype=np.int32), 130, 1, 5, size)


def test_scratch_does_not_grow_with_the_context():
    assert scratch_bytes(BASE) < 1 << 17


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_cache_store(dtype):
    module = ir.Module()
    module.triple = HOST.triple
    made = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, I64]), "kernel")
    b = Build(ir.IRBuilder(made.append_basic_block()), HOST)
    x, out, n = made.args
    width = 4 if dtype == "f32" else 2

    def turn(i, _):
        emit_cache_store(b, dtype, b.load(x, b.vec(F32), b.mul(i, 4)), out, b.mul(i, width))

    b.loop(0, n, HOST.lanes, [], turn)
    b.ir.ret_void()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), HOST.machine())
    engine.finalize_object()
    values = np.random.default_rng(0).normal(size=160).astype(np.float32)
    found = np.zeros(160, np.float32 if dtype == "f32" else np.uint16)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    call(engine.get_function_address("kernel"))(values.ctypes.data, found.ctypes.data, 160)
    assert np.array_equal(found, stored(rounded(values, dtype), dtype).view(found.dtype))
