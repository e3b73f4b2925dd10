"""Emitted attention against the op table: widths, ring wraps, windows, odd sizes, threads, several sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np
import pytest
from attention import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite import ir
from programs import HOST, RUNNABLE

from briolette.backends.cpu.build import F32, I64, PTR, VOID, Build, Target
from briolette.backends.cpu.kernels import attend_many, emit_cache_store
from briolette.backends.cpu.kernels.attend import Attend
from briolette.compiler.ops import OPS, rounded

BASE = Attend(8, 2, 64, 64, "f32", "f32", 0.125, None, None, 512)


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded values as the bits that a cache holds."""
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16 if dtype == "f16" else np.float32)


def check(
    spec: Attend,
    target: Target,
    positions: Sequence[int],
    capacity: int,
    threads: int,
    seed: int,
    size: float = 1.0,
    slots: Sequence[int] | None = None,
) -> np.ndarray:
    """Runs one step as `threads` threads in turn and compares with the op table, in double precision."""
    rng = np.random.default_rng(seed)
    positions = np.array(positions, np.int32)
    slots = np.zeros(len(positions), np.int32) if slots is None else np.array(slots, np.int32)
    rows, count = len(positions), int(slots.max()) + 1
    lengths = [int(positions[slots == s].max(initial=0)) + 1 for s in range(count)]
    q = rng.normal(size=(rows, spec.q_stride)).astype(np.float32) * np.float32(size)
    planes, rings = [], []
    for dims, dtype in ((spec.key_size, spec.key_dtype), (spec.value_size, spec.value_dtype)):
        plane = [rounded(rng.normal(size=(n, spec.groups, dims)).astype(np.float32), dtype) for n in lengths]
        ring = np.full((count, spec.groups, capacity, dims), 99, np.float32)
        for slot, length in enumerate(lengths):
            for p in range(max(0, length - capacity), length):
                ring[slot, :, p % capacity] = plane[slot][p]
        planes.append(plane)
        rings.append(stored(ring, dtype))
    heads = q[:, : spec.heads * spec.query_size].reshape(rows, spec.heads, spec.query_size)
    attrs = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap}
    attrs |= dict.fromkeys(("sink", "recent", "query_bits", "weight_bits"), 0)
    attrs["shared"] = spec.key_size if spec.shared else 0
    expected = np.empty((rows, spec.heads, spec.value_size))
    for slot in range(count):
        ours, (k, v) = slots == slot, (plane[slot].astype(np.float64) for plane in planes)
        if ours.any():
            expected[ours] = OPS["attend"].evaluate(
                OpsContext, heads[ours].astype(np.float64), k, v, positions[ours], **attrs
            )

    out = run(spec, target, q, rings, capacity, positions, slots, threads)
    # Scores are rounded to f32: an error of e in one changes its weight by a factor 1 + e.
    largest = np.abs(heads).sum(-1).max() * 5 * abs(spec.scale)
    bound = 2e-6 * max(1.0, largest / 16)
    error = np.abs(out - expected)
    assert error.max() <= bound * max(1.0, np.abs(expected).max())
    return out


class OpsContext:
    """`attend` asks nothing of its context."""


@st.composite
def specs(draw):
    groups, share = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12]))
    size = st.one_of(st.integers(1, 40), st.sampled_from([64, 80, 128]))
    key_size, value_size = draw(size), draw(size)
    shared = key_size < value_size and draw(st.booleans())
    dtypes = st.sampled_from(["f32", "f16", "bf16"])
    heads = groups * share
    return Attend(
        heads=heads,
        groups=groups,
        key_size=key_size,
        value_size=value_size,
        key_dtype=draw(dtypes),
        value_dtype=draw(dtypes),
        scale=draw(st.sampled_from([1.0, 0.125, key_size**-0.5])),
        window=draw(st.one_of(st.none(), st.integers(1, 150))),
        softcap=draw(st.sampled_from([None, 5.0])),
        q_stride=heads * (value_size if shared else key_size) + draw(st.sampled_from([0, 7])),
        shared=shared,
    )


@st.composite
def cases(draw):
    """Runs of rows, each of a sequence of its own, at any position; a third are single rows."""
    spec, runs = draw(specs()), []
    for slot in draw(st.permutations(range(draw(st.integers(1, 4))))):
        rows = draw(st.sampled_from([1, draw(st.integers(1, 3)), draw(st.integers(1, 90))]))
        start = draw(st.integers(0, 200))
        positions = np.arange(start, start + rows)
        if draw(st.booleans()):
            positions = np.random.default_rng(rows).permutation(positions)
        runs.append((slot, positions))
    # Without a window the ring holds all; with one, what the first row still sees and all that follow.
    least = max(p.max() + 1 if spec.window is None else min(p.max() + 1, spec.window + len(p) - 1) for _, p in runs)
    slots, positions = np.concatenate([[s] * len(p) for s, p in runs]), np.concatenate([p for _, p in runs])
    capacity = int(least) + draw(st.integers(0, 9))
    return spec, positions, capacity, draw(st.integers(1, 5)), draw(st.integers(0, 1 << 30)), slots


@pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)
def test_agrees_with_the_op_table(target):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases())
    def holds(case):
        spec, positions, capacity, threads, seed, slots = case
        check(spec, target, positions, capacity, threads, seed, slots=slots)

    holds()


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 40, 64])
@pytest.mark.parametrize(("start", "rows"), [(0, 1), (30, 1), (900, 1), (30, 33)])
def test_any_number_of_threads(start, rows, threads):
    """More threads than positions, than rows, than heads; the bits are always the same."""
    for spec in (BASE, replace(BASE, window=70, groups=1)):
        found, one = (check(spec, HOST, range(start, start + rows), start + rows, t, 1) for t in (threads, 1))
        assert np.array_equal(found, one)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_single_rows_of_many_sequences(threads):
    """Stretches of the threads begin and end in any row and group; some rows see far more than others."""
    positions = [0, 700, 3, 64, 63, 65, 1, 350]
    for groups, heads in ((1, 8), (2, 8), (8, 8), (3, 15)):
        spec = replace(BASE, groups=groups, heads=heads, q_stride=heads * 64)
        check(spec, HOST, positions, 701, threads, 4, slots=[3, 0, 1, 2, 7, 5, 6, 4])


def test_rows_of_a_sequence_in_several_places():
    """Among others of its own sequence a row is one of many, between two others it is alone."""
    slots = [0, 1, 1, 0, 2, 2, 2, 1]
    check(BASE, HOST, [5, 80, 81, 6, 0, 1, 2, 82], 100, 2, 5, slots=slots)


def test_scattered_positions_and_empty_tiles():
    positions = [700, 3, 0, 350, 701, 64, 63, 65]
    check(BASE, HOST, positions, 702, 1, 2)
    check(replace(BASE, window=5), HOST, positions, 702, 2, 3)


@pytest.mark.parametrize("capacity", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_window_as_long_as_the_ring(capacity, threads):
    """Every slot is seen, wherever the ring begins."""
    spec = replace(BASE, window=capacity)
    for p in (0, capacity - 1, capacity, 2 * capacity + capacity // 3, 1000):
        check(spec, HOST, [p], capacity, threads, p)


def test_scores_of_every_size():
    """Peaked softmax: all weight on one position, or exponents that underflow."""
    for size in (1e-3, 10.0, 1000.0):
        check(BASE, HOST, range(90, 130), 130, 1, 5, size)
        check(BASE, HOST, [129], 130, 3, 5, size)


def test_as_many_heads_as_an_item_has_queries():
    """An item takes a row at a time where heads alone fill it."""
    heads = attend_many.QUERIES + 7
    spec = replace(BASE, heads=heads, groups=1, key_size=16, value_size=16, q_stride=heads * 16)
    check(spec, HOST, range(20, 31), 40, 2, 6)
    check(spec, HOST, [70], 80, 2, 6)


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
