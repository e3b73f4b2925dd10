"""Emitted block readers: compiled and run on this machine, compiled only for others."""

from __future__ import annotations

import ctypes

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from programs import ARM, HOST, PLAIN, RUNNABLE

from briolette.backends.cpu.blocks import emit_dot, emit_span, unit
from briolette.backends.cpu.build import F32, I64, PTR, VOID, Build, Target
from briolette.backends.formats import FORMATS, Format, decode
from briolette.compiler.errors import BrioletteError

ROWS, K = 3, 768


def function(target: Target, *arguments: ir.Type) -> tuple[Build, list[ir.Value]]:
    module = ir.Module()
    module.triple = target.triple
    made = ir.Function(module, ir.FunctionType(VOID, arguments), "kernel")
    return Build(ir.IRBuilder(made.append_basic_block()), target), list(made.args)


def emit_dequantise(fmt: Format, target: Target) -> ir.Module:
    """kernel(row, out, n): a row as f32."""
    b, (row, out, n) = function(target, PTR, PTR, I64)

    def turn(i, _):
        for j, v in enumerate(emit_span(b, fmt, row, i, unit(fmt, target.lanes), target.lanes)):
            b.store(v, b.at(out, b.mul(i, 4)), 4 * target.lanes * j)

    b.loop(0, n, unit(fmt, target.lanes), [], turn)
    b.ir.ret_void()
    return b.module


def emit_products(fmt: Format, target: Target) -> ir.Module:
    """kernel(rows, x, out, k): ROWS inner products, two accumulators each."""
    b, (rows, x, out, k) = function(target, PTR, PTR, PTR, I64)
    step, lanes = unit(fmt, target.lanes), target.lanes
    stride = K // fmt.elements * fmt.bytes

    def turn(i, carried):
        at = b.mul(b.shr(i, fmt.elements.bit_length() - 1), fmt.bytes)
        ptrs = [b.at(b.at(rows, r * stride), at) for r in range(ROWS)]
        pairs = [carried[2 * r : 2 * r + 2] for r in range(ROWS)]
        return [acc for row in emit_dot(b, fmt, ptrs, b.at(x, b.mul(i, 4)), lanes, pairs) for acc in row]

    sums = b.loop(0, k, step, [b.zeros(lanes)] * (2 * ROWS), turn)
    for r in range(ROWS):
        b.store(b.reduce_add(b.add(sums[2 * r], sums[2 * r + 1])), out, 4 * r)
    b.ir.ret_void()
    return b.module


def run(module: ir.Module, target: Target, *arguments: np.ndarray | int) -> None:
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, target.machine())
    engine.finalize_object()
    raw = [a if isinstance(a, int) else a.ctypes.data for a in arguments]
    kinds = [ctypes.c_int64 if isinstance(a, int) else ctypes.c_void_p for a in arguments]
    ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("kernel"))(*raw)


def random_rows(fmt: Format, wild: bool) -> np.ndarray:
    """Any bits (finite ones, where a number is stored), or numbers of ordinary size."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (ROWS, K // fmt.elements, fmt.bytes), dtype=np.uint8)
    for f in fmt.fields:
        here = blocks[..., f.offset : f.end]
        if f.type in ("f16", "bf16", "f32"):
            if wild:  # clear the exponent's lowest bit: no infinity or NaN is left, subnormals are
                byte, bits = (-1, 0xFB) if f.type == "f16" else (-2, 0x7F)
                here[..., byte] &= bits
                continue
            ordinary = rng.normal(size=(*here.shape[:-1], 1)).astype("<f2" if f.type == "f16" else "<f4")
            here[:] = ordinary.view(np.uint8)[..., -f.length :]
        elif f.type == "e8m0" and not wild:
            here[:] = rng.integers(120, 134, here.shape)
    return blocks.reshape(ROWS, -1)


@pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_elements_are_bit_exact(name, target):
    fmt, rows = FORMATS[name], random_rows(FORMATS[name], wild=True)
    found = np.zeros(ROWS * K, dtype=np.float32)
    run(emit_dequantise(fmt, target), target, rows, found, ROWS * K)
    assert np.array_equal(found.view(np.uint32), decode(fmt, rows).reshape(-1).view(np.uint32))


@pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)
@pytest.mark.parametrize("name", FORMATS)
def test_inner_products(name, target):
    fmt, rows = FORMATS[name], random_rows(FORMATS[name], wild=False)
    x = np.random.default_rng(3).normal(size=K).astype(np.float32)
    found = np.zeros(ROWS, dtype=np.float32)
    run(emit_products(fmt, target), target, rows, x, found, K)
    w = decode(fmt, rows).astype(np.float64)
    assert np.all(np.abs(found - w @ x) <= 1e-6 * (np.abs(w) @ np.abs(x)))


@pytest.mark.parametrize("target", [ARM, PLAIN], ids=["aarch64", "x86-64"])
@pytest.mark.parametrize("name", FORMATS)
def test_other_machines_get_code_without_library_calls(name, target):
    for emit in (emit_dequantise, emit_products):
        parsed = llvm.parse_assembly(str(emit(FORMATS[name], target)))
        parsed.verify()
        text = target.machine().emit_assembly(parsed)
        assert not [line for line in text.splitlines() if line.split()[:1] in (["call"], ["callq"], ["bl"])]


def test_every_f16_without_the_instruction():
    b, (source, out, n) = function(PLAIN, PTR, PTR, I64)
    b.loop(0, n, 4, [], lambda i, _: b.store(emit_span(b, FORMATS["f16"], source, i, 4)[0], out, b.mul(i, 4)))
    b.ir.ret_void()
    halves, found = np.arange(65536, dtype=np.uint16), np.zeros(65536, dtype=np.float32)
    if HOST.arm:
        pytest.skip("an x86 test")
    run(b.module, PLAIN, halves, found, 65536)
    expected = halves.view(np.float16).astype(np.float32)
    known = ~np.isnan(expected)
    assert np.array_equal(found.view(np.uint32)[known], expected.view(np.uint32)[known])
    assert np.isnan(found[~known]).all()


def test_loop_counts_and_carries():
    b, (out, start, stop) = function(HOST, PTR, I64, I64)

    def outer(i, carried):
        inner = b.loop(0, i, 1, [carried[1]], lambda j, c: [b.add(c[0], j)])
        return [b.add(carried[0], 1), inner[0]]

    for slot, value in enumerate(b.loop(start, stop, 3, [b.i64(0), b.i64(0)], outer)):
        b.store(value, out, 8 * slot)
    fixed = b.loop(0, 0, 1, [b.f32(7.0)], lambda i, c: [b.add(c[0], 1.0)])
    b.store(fixed[0], out, 16)
    b.ir.ret_void()
    for first, last in ((0, 10), (2, 3), (5, 5), (6, 2)):
        found = np.zeros(3, dtype=np.int64)
        run(b.module, HOST, found, first, last)
        turns = range(first, last, 3)
        assert found[:2].tolist() == [len(turns), sum(sum(range(i)) for i in turns)]
        assert found[2:].view(np.float32)[0] == 7.0


def test_reduce_add():
    b, (source, out) = function(HOST, PTR, PTR)
    b.store(b.reduce_add(b.load(source, b.vec(F32, 16))), out)
    b.ir.ret_void()
    x, found = np.arange(16, dtype=np.float32), np.zeros(1, dtype=np.float32)
    run(b.module, HOST, x, found)
    assert found[0] == 120


def test_a_span_of_part_of_a_block_is_an_error():
    b, (row, *_) = function(HOST, PTR)
    with pytest.raises(BrioletteError, match="units of 256"):
        emit_span(b, FORMATS["q4_k"], row, 128, 256)
    with pytest.raises(BrioletteError, match="16 elements of q8_0"):
        emit_span(b, FORMATS["q8_0"], row, 0, 16)
