"""f32 functions in IR against numpy in double precision, at every width; conversions to 16 bits."""

from __future__ import annotations

import ctypes
import math
import re

import llvmlite.binding as llvm
import numpy as np
import programs
import pytest
from llvmlite import ir
from programs import ARM, PLAIN

from briolette.backends.cpu.build import F32, I16, I64, PTR, VOID, Build, Target, scalar
from briolette.backends.cpu.math import ELEMENTWISE
from briolette.compiler.ops import OPS, rounded

# Beside what other tests run as: one value at a time.
RUNNABLE = {"1 lanes": Target.host(1)} | programs.RUNNABLE
every_target = pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)

UNARY = ["exp", "tanh", "rsqrt", "gelu", "silu", "softcap"]
CAP = 30.0


def emit(target: Target, operation, operands: int, out: ir.Type = F32) -> ir.Module:
    """kernel(x..., result, n): `operation` on vectors of the target's lanes (on scalars where that is 1)."""
    module = ir.Module()
    module.triple = target.triple
    made = ir.Function(module, ir.FunctionType(VOID, [PTR] * (operands + 1) + [I64]), "kernel")
    b = Build(ir.IRBuilder(made.append_basic_block()), target)
    *xs, result, n = made.args
    ty = F32 if target.lanes == 1 else b.vec(F32)
    size = 2 if out is I16 else 4

    def turn(i, _):
        value = operation(b, *(b.load(x, ty, b.mul(i, 4)) for x in xs))
        assert scalar(value.type) == out
        b.store(value, result, b.mul(i, size))

    b.loop(0, n, target.lanes, [], turn)
    b.ir.ret_void()
    return module


def run(target: Target, operation, *xs: np.ndarray, out: type = np.float32) -> np.ndarray:
    """The operation on arrays of one length, a multiple of 16."""
    module = emit(target, operation, len(xs), F32 if out is np.float32 else I16)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, target.machine())
    engine.finalize_object()
    result = np.zeros(len(xs[0]), out)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(xs) + 1), ctypes.c_int64)
    call(engine.get_function_address("kernel"))(*(a.ctypes.data for a in (*xs, result)), len(result))
    return result


def one(name: str):
    attrs = {"cap": CAP} if name == "softcap" else {}
    return lambda b, *xs: ELEMENTWISE[name](b, *xs, **attrs)


def spread() -> np.ndarray:
    """Numbers of every size and both signs, dense where functions bend."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint32).view(np.float32)
    dense = [rng.uniform(-w, w, 1 << 16).astype(np.float32) for w in (1, 12, 110)]
    x = np.concatenate([bits[np.isfinite(bits)], *dense, np.linspace(0.6, 0.65, 4096, dtype=np.float32)])
    return x[: len(x) // 16 * 16].copy()


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """In double precision, written so that nothing cancels."""
    x = x.astype(np.float64)
    match name:
        case "exp":
            return np.exp(x)
        case "tanh":
            return np.tanh(x)
        case "rsqrt":
            return 1 / np.sqrt(x)
        case "gelu":
            return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "silu":
            return x / (1 + np.exp(-x))
    return np.tanh(x / CAP) * CAP


def ulps(found: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of the right f32 result."""
    with np.errstate(over="ignore"):
        nearest = np.abs(right).astype(np.float32)
    nearest = np.minimum(nearest, np.finfo(np.float32).max)
    with np.errstate(invalid="ignore"):
        return np.abs(found.astype(np.float64) - right) / np.spacing(nearest).astype(np.float64)


@pytest.mark.parametrize(("name", "most"), [("exp", 1.0), ("tanh", 2.0), ("rsqrt", 1.5), ("softcap", 3.0)])
@every_target
@pytest.mark.filterwarnings("ignore:overflow")
def test_errors_in_ulps(name, most, target):
    x = spread()
    x = np.abs(x) + np.float32(1e-38) if name == "rsqrt" else x
    found, right = run(target, one(name), x), exact(name, x)
    with np.errstate(over="ignore"):
        representable = np.isfinite(right.astype(np.float32))
    assert np.array_equal(found[~representable], right.astype(np.float32)[~representable])
    if name == "softcap":  # a quotient by the cap may be subnormal, and is then rounded to few bits
        representable &= np.abs(right) > 1e-36
    assert ulps(found, right)[representable].max() <= most


@every_target
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_gelu_and_silu_are_accurate_in_the_tails(target):
    x = spread()
    for name, relative in (("gelu", 2e-5), ("silu", 3e-7)):
        found, right = run(target, one(name), x), exact(name, x)
        assert np.all(np.abs(found - right) <= 2e-7 * np.abs(x) + 1e-45)
        kept = np.abs(right) > 1e-36
        assert np.max(np.abs(found / right - 1)[kept]) <= relative


@every_target
@pytest.mark.filterwarnings("ignore")
def test_agrees_with_the_op_table(target):
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=4096).astype(np.float32) * 4 for _ in range(2))
    for name in ELEMENTWISE:
        if name in UNARY:
            given = (np.abs(x),) if name == "rsqrt" else (x,)
            attrs, bound = ({"cap": CAP} if name == "softcap" else {}), 3e-7
        else:
            given, attrs, bound = (x, y), {}, 0.0
        expected = OPS[name].evaluate(None, *given, **attrs)
        error = np.abs(run(target, one(name), *given) - expected)
        assert np.all(error <= bound * np.maximum(np.abs(expected), 1))


@every_target
def test_special_values(target):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38] * 2, np.float32)
    found = {name: run(target, one(name), x)[:8] for name in UNARY}
    assert all(np.isnan(values[4]) for values in found.values())
    assert found["exp"][:4].tolist() == [1, 1, np.inf, 0]
    assert found["tanh"][:4].tolist() == [0, 0, 1, -1]
    assert np.signbit(found["tanh"][1])
    assert np.array_equal(found["tanh"][5:7], x[5:7])
    assert found["gelu"][[0, 2, 7]].tolist() == [0, np.inf, x[7]]
    assert found["silu"][[0, 2, 7]].tolist() == [0, np.inf, x[7]]
    assert found["softcap"][2:4].tolist() == [CAP, -CAP]
    assert found["rsqrt"][[0, 2]].tolist() == [np.inf, 0]


def test_every_elementwise_op_has_an_emitter():
    assert set(ELEMENTWISE) == {name for name, op in OPS.items() if "elementwise" in op.traits}


def hard_to_round() -> np.ndarray:
    """Every f16, every midpoint between two, the f32 numbers next to those, any bits; both signs."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    halves[-1] = 65536  # where the next f16 would be
    points = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2]).astype(np.float32)
    rng = np.random.default_rng(4)
    any_bits = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint32).view(np.float32)
    near = [np.nextafter(points, np.float32(to)) for to in (-np.inf, np.inf)]
    special = np.array([0, np.inf, np.nan, 3e38], np.float32)
    x = np.concatenate([points, *near, any_bits, special])
    x = np.concatenate([x, -x])
    return np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@every_target
@pytest.mark.filterwarnings("ignore:overflow")
def test_rounding_to_16_bits_is_bit_exact(dtype, target):
    x = hard_to_round()
    convert = Build.to_f16_bits if dtype == "f16" else Build.to_bf16_bits
    found = run(target, convert, x, out=np.uint16)
    nan = np.isnan(x)
    values = rounded(x, dtype)
    expected = values.astype(np.float16).view(np.uint16) if dtype == "f16" else values.view(np.uint32) >> 16
    assert np.array_equal(found[~nan], expected[~nan])
    exponent = 0x7C00 if dtype == "f16" else 0x7F80
    assert np.all((found[nan] & exponent == exponent) & (found[nan] & 0x7FFF > exponent))


@pytest.mark.parametrize("target", [ARM, PLAIN], ids=["aarch64", "x86-64"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_other_machines_get_code_without_library_calls(lanes, target):
    target = Target(target.triple, target.cpu, target.features, lanes)
    emitted = [emit(target, one(name), 1) for name in UNARY]
    emitted += [emit(target, convert, 1, I16) for convert in (Build.to_f16_bits, Build.to_bf16_bits)]
    for module in emitted:
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        text = target.machine().emit_assembly(parsed)
        assert not re.findall(r"^\s+(?:callq?|jmpq?|bl?)\s+[^.\s]", text, re.M)
