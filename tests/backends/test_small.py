"""Small kernels against the op table: rotary tables, top, take, combine; what objects of all kernels need."""

from __future__ import annotations

import ctypes
from functools import cached_property

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from llvmlite import ir
from programs import ARM, HOST, PLAIN, RUNNABLE, undefined

from briolette.backends.cpu.build import I64, PTR, VOID, Build, Target
from briolette.backends.cpu.kernels import split
from briolette.backends.cpu.kernels.attend import Attend
from briolette.backends.cpu.kernels.attend_many import emit_attend_many
from briolette.backends.cpu.kernels.attend_one import emit_attend_one
from briolette.backends.cpu.kernels.attend_parts import emit_merge
from briolette.backends.cpu.kernels.small import emit_combine, emit_rope_table, emit_take, emit_top
from briolette.compiler.interp import Interpreter
from briolette.compiler.ops import OPS, inverse_frequencies

every_target = pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)

TABLE = Interpreter({}.__getitem__)  # what the op table's formulas are evaluated in


class Kernel:
    """`emit(module, target, "kernel", *arguments)`, callable with arrays and integers."""

    def __init__(self, target: Target, emit, *arguments):
        module = ir.Module()
        module.triple = target.triple
        emit(module, target, "kernel", *arguments)
        self.parsed = llvm.parse_assembly(str(module))
        self.parsed.verify()
        self.target = target

    def undefined(self) -> set[str]:
        """Names that the object expects from elsewhere."""
        return undefined(self.target.machine().emit_object(self.parsed))

    @cached_property
    def engine(self) -> llvm.ExecutionEngine:
        engine = llvm.create_mcjit_compiler(self.parsed, self.target.machine())
        engine.finalize_object()
        return engine

    def run(self, out: np.ndarray, *given: np.ndarray, rows: int, threads: int = 1) -> np.ndarray:
        kinds = [ctypes.c_void_p] * (len(given) + 1) + [ctypes.c_int64] * 3
        call = ctypes.CFUNCTYPE(None, *kinds)(self.engine.get_function_address("kernel"))
        for tid in range(threads):
            call(*(a.ctypes.data for a in (*given, out)), rows, tid, threads)
        return out


@every_target
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("dims", "theta", "scale", "factors"),
    [
        (32, 1e4, 1.0, False),
        (256, 1e6, 0.125, False),
        (34, 1e6, 0.3, True),
        (2, 1e4, 1.0, True),
    ],
)
def test_rope_table(dims, theta, scale, factors, threads, target):
    pos = np.array([0, 1, 2, 77, 4095, 131071, 1000003], np.int32)
    freqs = np.random.default_rng(0).uniform(1, 8, dims // 2).astype(np.float32)
    freqs[-1] = 1e30  # how Gemma 4 keeps a pair from turning
    given = (pos, freqs) if factors else (pos,)
    inverse = inverse_frequencies(theta, dims, 1.0)
    kernel = Kernel(target, emit_rope_table, dims // 2, factors, inverse, scale)
    found = kernel.run(np.zeros((len(pos), dims // 2, 2), np.float32), *given, rows=len(pos), threads=threads)
    expected = OPS["rope_table"].evaluate(TABLE, *given, theta=theta, dims=dims, scale=scale)
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
        assert np.array_equal(found, OPS["top"].evaluate(TABLE, x, k=k))

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
    assert np.array_equal(found, OPS["take"].evaluate(TABLE, x, ids))


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
    assert np.all(np.abs(found - OPS["combine"].evaluate(TABLE, x, w)) <= bound)


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


KERNELS = {
    "rope": (emit_rope_table, 32, False, inverse_frequencies(1e4, 64, 1.0)),
    "rope with factors": (emit_rope_table, 32, True, inverse_frequencies(1e4, 64, 1.0), 0.5),
    "top": (emit_top, 37, 5),
    "take": (emit_take, 11, 3, True),
    "combine": (emit_combine, 3, 37),
}
for dtype in ("f32", "f16", "bf16"):
    for emit in (emit_attend_one, emit_merge, emit_attend_many):
        spec = Attend(8, 2, 65, 71, dtype, dtype, 1.0, 9, 30.0, 520)
        KERNELS[f"{emit.__name__} {dtype}"] = (emit, spec)


@pytest.mark.parametrize("target", [ARM, PLAIN, HOST], ids=["aarch64", "x86-64", "host"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_objects_need_nothing_but_sin_and_cos(kernel, target):
    needed = Kernel(target, *kernel).undefined()
    assert needed - {"memcpy", "memset"} == ({"cos", "sin"} if kernel[0] is emit_rope_table else set())
