"""Small kernels against the op table: rotary tables, top, take, combine; threads in turn; other machines."""

from __future__ import annotations

import ctypes
import re

import llvmlite.binding as llvm
import numpy as np
import pytest
from briolette.backends.cpu.build import I64, PTR, VOID, Build, Target
from briolette.backends.cpu.kernels import split
from briolette.backends.cpu.kernels.small import emit_combine, emit_rope_table, emit_take, emit_top
from briolette.compiler.ops import OPS, inverse_frequencies
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from llvmlite import ir

HOST = Target.host()
ARM = Target("aarch64-unknown-linux-gnu", "generic", "+neon", 4)
PLAIN = Target("x86_64-unknown-linux-gnu", "x86-64", "", 4)

# What this machine can run: every width it has, and an older machine that its own features hide.
RUNNABLE = {f"{n} lanes": Target.host(n) for n in (4, 8, 16) if n <= HOST.widest}
if not HOST.arm:
    RUNNABLE["sse2"] = PLAIN
every_target = pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)


class Kernel:
    """`emit(module, target, "kernel", *arguments)`, callable with arrays and integers."""

    def __init__(self, target: Target, emit, *arguments):
        module = ir.Module()
        module.triple = target.triple
        emit(module, target, "kernel", *arguments)
        self.parsed = llvm.parse_assembly(str(module))
        self.parsed.verify()
        self.target = target

    def assembly(self) -> str:
        return self.target.machine().emit_assembly(self.parsed)

    def run(self, out: np.ndarray, *given: np.ndarray, rows: int, threads: int = 1) -> np.ndarray:
        engine = llvm.create_mcjit_compiler(self.parsed, self.target.machine())
        engine.finalize_object()
        kinds = [ctypes.c_void_p] * (len(given) + 1) + [ctypes.c_int64] * 3
        call = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("kernel"))
        for tid in range(threads):
            call(*(a.ctypes.data for a in (*given, out)), rows, tid, threads)
        return out


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.int32).astype(np.int64)


@every_target
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("dims", "theta", "scale", "factors"), [
    (32, 1e4, 1.0, False), (256, 1e6, 0.125, False), (34, 1e6, 0.3, True), (2, 1e4, 1.0, True),
])
def test_rope_table(dims, theta, scale, factors, threads, target):
    pos = np.array([0, 1, 2, 77, 4095, 131071, 1000003], np.int32)
    freqs = np.random.default_rng(0).uniform(1, 8, dims // 2).astype(np.float32)
    freqs[-1] = 1e30  # how Gemma 4 keeps a pair from turning
    given = (pos, freqs) if factors else (pos,)
    inverse = inverse_frequencies(theta, dims, 1.0)
    kernel = Kernel(target, emit_rope_table, dims // 2, factors, inverse, scale)
    found = kernel.run(np.zeros((len(pos), dims // 2, 2), np.float32), *given, rows=len(pos), threads=threads)
    expected = OPS["rope_table"].evaluate(None, *given, theta=theta, dims=dims, scale=scale)
    # Two libraries' doubles, rounded to f32: the same but for the rarest ties.
    assert np.all(np.abs(found - expected) <= np.spacing(np.abs(expected)))
    assert np.mean(found != expected) < 1e-3


@st.composite
def numbers(draw):
    """Rows with ties, both zeros, infinities and NaN."""
    rows, n = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, -3e38])
    value = draw(st.sampled_from([few, st.floats(-3, 3, width=32), st.integers(-2, 2).map(float)]))
    return draw(hnp.arrays(np.float32, (rows, n), elements=value)), draw(st.integers(1, n))


@every_target
def test_top(target):
    @settings(max_examples=60, deadline=None)
    @given(numbers(), st.integers(1, 5))
    def holds(drawn, threads):
        x, k = drawn
        kernel = Kernel(target, emit_top, x.shape[1], k)
        found = kernel.run(np.full((len(x), k), -1, np.int32), x, rows=len(x), threads=threads)
        assert np.array_equal(found, OPS["top"].evaluate(None, x, k=k))

    holds()


@every_target
@pytest.mark.parametrize("vector", [True, False])
def test_take(vector, target):
    rng = np.random.default_rng(1)
    rows, n, k = 5, 11, 3
    x = rng.normal(size=n if vector else (rows, n)).astype(np.float32)
    ids = rng.integers(0, n, (rows, k)).astype(np.int32)
    kernel = Kernel(target, emit_take, n, k, vector)
    found = kernel.run(np.zeros((rows, k), np.float32), x, ids, rows=rows, threads=2)
    assert np.array_equal(found, OPS["take"].evaluate(None, x, ids))


@every_target
@pytest.mark.parametrize(("used", "n"), [(1, 1), (2, 7), (8, 640), (3, 37)])
def test_combine(used, n, target):
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(3, used, n)).astype(np.float32), rng.normal(size=(3, used)).astype(np.float32)
    kernel = Kernel(target, emit_combine, used, n)
    out = np.full(3 * n + 1, 7, np.float32)
    found = kernel.run(out, x, w, rows=3, threads=5)[:-1].reshape(3, n)
    assert out[-1] == 7
    bound = 2e-7 * used * np.einsum("run,ru->rn", np.abs(x), np.abs(w))
    assert np.all(np.abs(found - OPS["combine"].evaluate(None, x, w)) <= bound)


def test_split_covers_every_row_once():
    def emit(module, target, name):
        made = ir.Function(module, ir.FunctionType(VOID, [PTR] + [I64] * 3), name)
        b = Build(ir.IRBuilder(made.append_basic_block()), target)
        out, rows, tid, threads = made.args
        for j, bound in enumerate(split(b, rows, tid, threads)):
            b.store(bound, b.at(out, b.mul(tid, 16)), 8 * j)
        b.ir.ret_void()

    kernel = Kernel(HOST, emit)
    for rows in (0, 1, 2, 7, 64):
        for threads in (1, 2, 3, 9):
            found = kernel.run(np.zeros((threads, 2), np.int64), rows=rows, threads=threads)
            assert [r for first, last in found for r in range(first, last)] == list(range(rows))
            assert np.ptp(found[:, 1] - found[:, 0]) <= 1


@pytest.mark.parametrize("target", [ARM, PLAIN], ids=["aarch64", "x86-64"])
def test_other_machines_get_code_that_calls_only_cos_and_sin(target):
    inverse = inverse_frequencies(1e4, 64, 1.0)
    for emit, *arguments in (
        (emit_rope_table, 32, True, inverse, 0.5),
        (emit_rope_table, 32, False, inverse),
        (emit_top, 37, 5),
        (emit_take, 11, 3, True),
        (emit_combine, 3, 37),
    ):
        text = Kernel(target, emit, *arguments).assembly()
        called = re.findall(r"^\s+(?:callq?|jmpq?|bl?)\s+([^.\s@]+)", text, re.M)
        assert set(called) <= {"cos", "sin", "memcpy", "memset"}
        assert ("cos" in called) == (emit is emit_rope_table)
