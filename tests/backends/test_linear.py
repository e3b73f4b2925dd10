"""Matrix products end to end: every block format, every shape of kernel, what is fused onto the results.

Errors are measured against products in double precision, relative to the sum of |w| |x| of each result:
what f32 sums can be held to when terms cancel.
"""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import BLOCKS, FEW, HOST, NUMBERS, RUNNABLE, Program

from briolette.backends import formats
from briolette.backends.cpu.kernels.linear import PANEL_ROWS
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.ops import node
from briolette.compiler.pipeline import Form, optimise

BOUND = 5e-7
# Outputs on both sides of what kernels count in: groups of 2 and 4 weight rows, panels of 16.
OUTPUTS = st.one_of(st.integers(1, 9), st.integers(14, 19), st.integers(30, 37))
ROWS = st.integers(1, 9)
THREADS = st.integers(1, 5)


def kernels(module: Module, rows: int) -> list[tuple[str, int]]:
    """Family of each kernel of the program, and how many products it has."""
    form = Form(tokens=1 if rows == 1 else None, logits="all")
    return [
        (n["family"], sum(op.op.endswith("linear") for op in topological([n["block"].result])))
        for n in topological(optimise(module, form).roots)
        if n.op == "fused"
    ]


def sizes(p: Program, x: str, w: str, rows: int) -> np.ndarray:
    """The sum of |w| |x| of each result of a product."""
    return np.abs(p.decoded(x)[:rows]) @ np.abs(p.decoded(w)).T


def close(found: np.ndarray, exact: np.ndarray, size: np.ndarray) -> None:
    assert found.shape == exact.shape
    assert np.all(np.abs(found - exact) <= BOUND * size + 1e-30)


@pytest.mark.parametrize("target", FEW.values(), ids=FEW)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("format", NUMBERS + BLOCKS)
def test_every_format(format, rows, target):
    """test_blocks.py has what differs between machines, for all of them."""
    p = Program(seed=rows)
    y = node("linear", p.input("x", rows, 512), p.weight("w", 22, 512, format=format))
    close(p.run(y, rows, threads=2, target=target), p.exact(y, rows), sizes(p, "x", "w", rows))


@settings(max_examples=35, deadline=None)
@given(st.sampled_from(NUMBERS), st.integers(1, 150), OUTPUTS, ROWS, THREADS, st.sampled_from(list(RUNNABLE)))
def test_plain_numbers_of_any_length(format, inputs, outputs, rows, threads, machine):
    """Rows of any length: whole vectors, four of them a turn, and a rest taken one by one."""
    p = Program(seed=inputs)
    y = node("linear", p.input("x", rows, inputs), p.weight("w", outputs, inputs, format=format))
    found = p.run(y, rows, threads, RUNNABLE[machine])
    close(found, p.exact(y, rows), sizes(p, "x", "w", rows))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(BLOCKS), st.integers(1, 3), OUTPUTS, ROWS, THREADS)
def test_blocks_of_any_shape(format, blocks, outputs, rows, threads):
    p = Program(seed=outputs)
    inputs = blocks * formats.get(format).elements
    y = node("linear", p.input("x", rows, inputs), p.weight("w", outputs, inputs, format=format))
    close(p.run(y, rows, threads), p.exact(y, rows), sizes(p, "x", "w", rows))


@pytest.mark.parametrize("threads", [1, 2, 7, 40])
@pytest.mark.parametrize(("rows", "outputs"), [(1, 1), (1, 3), (1, 50), (6, 1), (6, 50), (70, 2 * PANEL_ROWS)])
def test_more_threads_than_work(rows, outputs, threads):
    p = Program(seed=3)
    y = node("linear", p.input("x", rows, 96), p.weight("w", outputs, 96, format="q8_0"))
    close(p.run(y, rows, threads), p.exact(y, rows), sizes(p, "x", "w", rows))


@pytest.mark.parametrize("format", NUMBERS + BLOCKS)
@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_beyond_a_tensor_is_read(format, rows):
    """The weights end where the next page must not be touched; reading on would end this process."""
    page, p = mmap.PAGESIZE, Program(seed=1)
    inputs = 70 if format in NUMBERS else 2 * formats.get(format).elements
    y = node("linear", p.input("x", rows, inputs), p.weight("w", 7, inputs, format=format))
    info, stored = p.tensors["w"]
    pages = -(-stored.size // page) + 1
    memory = mmap.mmap(-1, pages * page)
    guarded = np.frombuffer(memory, np.uint8)
    protect(guarded.ctypes.data + (pages - 1) * page, page, writable=False, readable=False)
    try:
        start = (pages - 1) * page - stored.size
        guarded[start : start + stored.size] = stored
        p.tensors["w"] = info, guarded[start : start + stored.size]
        close(p.run(y, rows, 2), p.exact(y, rows), sizes(p, "x", "w", rows))
    finally:
        protect(guarded.ctypes.data + (pages - 1) * page, page, writable=True, readable=True)


def protect(address: int, size: int, *, writable: bool, readable: bool) -> None:
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).mprotect
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert call(address, size, 2 * writable | readable) == 0


def gated(p: Program, act: str, x: Node, outputs: int, inputs: int, format: str) -> Node:
    gate, up = (p.weight(w, outputs, inputs, format=format) for w in ("gate", "up"))
    return node("mul", node(act, node("linear", x, gate)), node("linear", x, up))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["gelu", "silu"]), st.sampled_from(["f32", "q4_0", "q8_0", "bf16"]), OUTPUTS, ROWS, THREADS)
def test_gate_and_up_in_one_kernel(act, format, outputs, rows, threads):
    p = Program(seed=outputs)
    y = gated(p, act, p.input("x", rows, 64, 0.1), outputs, 64, format)
    assert ("linear", 2) in kernels(p.module(y), rows)
    gate, up = sizes(p, "x", "gate", rows), sizes(p, "x", "up", rows)
    # Both activations change by at most 1.13 of what their argument does, and their values are at most it.
    close(p.run(y, rows, threads), p.exact(y, rows), 3 * gate * up)


@settings(max_examples=15, deadline=None)
@given(OUTPUTS, ROWS, THREADS, st.booleans())
def test_what_follows_a_product(outputs, rows, threads, direct):
    """x + 3 tanh(w . x / 3) * v * s * t, all in the product's kernel: a number for each result, column, row,
    and one for all. `direct`: the residual is the very input of the product."""
    p = Program(seed=rows)
    # A plain copy would be computed again instead of being read, so the residual is a product itself.
    t = node("linear", p.input("c", rows, 8), p.weight("d", 1, 8))
    x = node("mul", node("linear", p.input("a", rows, 32), p.weight("b", outputs, 32)), t)
    source = x if direct else node("mul", x, node("const", value=0.5))
    product = node("softcap", node("linear", source, p.weight("w", outputs, outputs)), cap=3.0)
    scaled = node("mul", node("mul", product, p.weight("v", outputs)), p.weight("s", 1))
    y = node("add", x, node("mul", scaled, t))
    assert kernels(p.module(y), rows)[-1] == ("linear", 1)
    last = sizes(p, "c", "d", rows)
    first = 2 * sizes(p, "a", "b", rows) * last
    inner = first @ np.abs(p.decoded("w")).T
    factor = np.abs(p.decoded("v")) * np.abs(p.decoded("s"))
    close(p.run(y, rows, threads), p.exact(y, rows), first + (2 * inner + 6) * factor * last)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)
def test_a_slice_of_wider_rows(rows, target):
    """x that lies in a wider row, and weights that are some rows of a tensor (as in a fused qkv)."""
    p = Program(seed=5)
    wide = node("linear", p.input("a", rows, 32), p.weight("b", 96, 32))
    x = node("slice", wide, axis=1, start=24, stop=88)
    w = node("slice", p.weight("w", 40, 64, format="q4_1"), axis=0, start=9, stop=32)
    y = node("linear", x, w)
    size = (sizes(p, "a", "b", rows)[:, 24:88]) @ np.abs(p.decoded("w")[9:32]).T
    close(p.run(y, rows, 3, target), p.exact(y, rows), size)


@pytest.mark.parametrize("rows", [1, 4])
def test_columns_of_a_plain_weight(rows):
    """Stored blocks cannot be cut, but rows of f32 can."""
    p = Program(seed=6)
    w = node("slice", p.weight("w", 19, 64), axis=1, start=7, stop=40)
    y = node("linear", p.input("x", rows, 33), w)
    size = np.abs(p.decoded("x")[:rows]) @ np.abs(p.decoded("w")[:, 7:40]).T
    close(p.run(y, rows, 2), p.exact(y, rows), size)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_result_that_is_part_of_another(rows):
    """The memory that a program writes its output to is as large as what the kernel makes."""
    p = Program(seed=7)
    whole = node("linear", p.input("x", rows, 32), p.weight("w", 100, 32))
    y = node("slice", whole, axis=1, start=50, stop=60)
    close(p.run(y, rows, 2), p.exact(y, rows), sizes(p, "x", "w", rows)[:, 50:60])


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["f32", "q8_0", "mxfp4", "f16"]), st.booleans(), ROWS, st.integers(1, 4), OUTPUTS, THREADS)
def test_experts(format, split, rows, used, half, threads):
    """gelu(gate) * up by each token's own experts, from slices of one fused tensor, then down again."""
    p = Program(seed=half)
    experts, inputs = 5, 64
    x = p.input("x", rows, inputs, 0.1)
    ids = node("top", p.input("r", rows, experts), k=used)
    if split:
        gate, up = (p.weight(w, experts, half, inputs, format=format) for w in ("gate", "up"))
    else:
        both = p.weight("both", experts, 2 * half, inputs, format=format)
        gate = node("slice", both, axis=1, start=0, stop=half)
        up = node("slice", both, axis=1, start=half, stop=2 * half)
    a, b = node("expert_linear", x, gate, ids), node("expert_linear", x, up, ids)
    hidden = node("mul", node("gelu", a), b)
    wide = node("reshape", hidden, shape=(hidden.shape[0], used * half))
    assert ("experts", 2) in kernels(p.module(wide), rows)
    g, u = (p.decoded(w) for w in ("gate", "up")) if split else np.split(p.decoded("both"), 2, axis=1)
    chosen = p.exact(ids, rows)
    values = np.abs(p.decoded("x")[:rows])
    size = [np.einsum("tk,tunk->tun", values, np.abs(w)[chosen]).reshape(rows, -1) for w in (g, u)]
    close(p.run(wide, rows, threads), p.exact(wide, rows), 3 * size[0] * size[1])


@settings(max_examples=10, deadline=None)
@given(ROWS, st.integers(1, 3), OUTPUTS, THREADS, st.sampled_from(["f32", "q4_0"]))
def test_experts_with_an_input_each(rows, used, outputs, threads, format):
    """The way down: every (token, expert) pair has a row of its own."""
    p = Program(seed=used)
    experts, inner = 4, 32
    ids = node("top", p.input("r", rows, experts), k=used)
    x = p.input("x", rows, used * inner)
    pairs = node("reshape", x, shape=(x.shape[0], used, inner))
    y = node("expert_linear", pairs, p.weight("w", experts, outputs, inner, format=format), ids)
    y = node("reshape", y, shape=(x.shape[0], used * outputs))
    chosen, values = p.exact(ids, rows), np.abs(p.decoded("x")[:rows]).reshape(rows, used, inner)
    size = np.einsum("tuk,tunk->tun", values, np.abs(p.decoded("w"))[chosen]).reshape(rows, -1)
    close(p.run(y, rows, threads), p.exact(y, rows), size)


@pytest.mark.parametrize("rows", [1, 5])
def test_nan_and_infinity_go_through(rows):
    """What is broken in a model shows in its results, where it would show in numpy."""
    p = Program(seed=8)
    y = node("linear", p.input("x", rows, 40), p.weight("w", 18, 40))
    weights = p.tensors["w"][1].view(np.float32).reshape(18, 40)
    weights[3, 5], weights[17, 39], weights[9, 0] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        exact = p.exact(y, rows).astype(np.float32)
    found = p.run(y, rows, 2, HOST)
    special = ~np.isfinite(exact)
    assert special[:, [3, 17, 9]].all()
    assert np.array_equal(found[special], exact[special], equal_nan=True)
    assert np.isfinite(found[~special]).all()
