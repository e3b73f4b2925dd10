"""Work along rows end to end: norms, softmax, sums, rotation, embedding look-ups, cache writes.

Reference values are those of the op table, in double precision; rounding of f32 is allowed for.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import BLOCKS, NUMBERS, RUNNABLE, Program, T

from briolette.backends import formats
from briolette.compiler.ir import Node
from briolette.compiler.ops import node, rounded

COLUMNS = st.integers(1, 70)
ROWS = st.integers(1, 7)
THREADS = st.integers(1, 5)
MACHINES = st.sampled_from(list(RUNNABLE))


def const(value: float) -> Node:
    return node("const", value=value)


def close(found: np.ndarray, exact: np.ndarray, bound: float = 2e-6) -> None:
    assert found.shape == exact.shape
    assert np.all(np.abs(found - exact) <= bound * np.maximum(np.abs(exact), np.abs(exact).max()))


def check(p: Program, y: Node, rows: int, threads: int, machine: str, bound: float = 2e-6) -> None:
    close(p.run(y, rows, threads, RUNNABLE[machine]), p.exact(y, rows), bound)


def kept(p: Program, name: str, rows: int, columns: int) -> Node:
    """A value that lies in a buffer: a look-up would be done again inside the kernel."""
    return node("linear", p.input(f"{name}.x", rows, 16), p.weight(f"{name}.w", columns, 16))


# What a rows kernel computes of x [T, n], a vector v [n], another value r [T, n], and s [T, 1].
CHAINS = {
    "norm": lambda x, v, r, s: node("rms_norm", x, v, eps=1e-6),
    "norm without weight": lambda x, v, r, s: node("rms_norm", x, eps=1e-6),
    "norm and residual": lambda x, v, r, s: node("add", r, node("rms_norm", x, v, eps=1e-5)),
    "norm of a residual": lambda x, v, r, s: node("rms_norm", node("add", r, node("mul", x, v)), v, eps=1e-5),
    "norm of a norm": lambda x, v, r, s: node("rms_norm", node("rms_norm", x, v, eps=1e-6), v, eps=1e-6),
    "two norms of one": lambda x, v, r, s: node(
        "add", node("rms_norm", x, v, eps=1e-6), node("rms_norm", node("mul", x, r), eps=1e-6)
    ),
    "softmax": lambda x, v, r, s: node("softmax", x),
    "softmax of a scaled sum": lambda x, v, r, s: node("softmax", node("mul", node("add", x, r), const(3.0))),
    "share": lambda x, v, r, s: node("div", node("exp", x), node("sum", node("exp", x))),
    "distance to the mean": lambda x, v, r, s: node("sub", x, node("mean", x)),
    "below the maximum": lambda x, v, r, s: node("sub", x, node("max", node("mul", x, v))),
    # The half keeps a sum that cancels to almost nothing from making its own rounding the result.
    "a number each": lambda x, v, r, s: node(
        "add", node("mul", x, s), node("mul", r, node("rsqrt", node("add", node("mul", s, s), const(0.5))))
    ),
    "activations": lambda x, v, r, s: node("mul", node("silu", x), node("softcap", node("gelu", r), cap=2.0)),
    "a number for all": lambda x, v, r, s: node("mul", x, const(0.37)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_chains(chain):
    @settings(max_examples=6, deadline=None)
    @given(COLUMNS, ROWS, THREADS, MACHINES, st.booleans())
    def holds(columns, rows, threads, machine, stored):
        p = Program(seed=columns)
        x = kept(p, "x", rows, columns) if stored else p.input("x", rows, columns)
        v, r, s = p.weight("v", columns), kept(p, "r", rows, columns), kept(p, "s", rows, 1)
        check(p, CHAINS[chain](x, v, r, s), rows, threads, machine, 4e-6)

    holds()


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
@settings(max_examples=6, deadline=None)
@given(columns=COLUMNS, rows=ROWS, threads=THREADS, machine=MACHINES)
def test_a_number_a_row_is_the_result(op, columns, rows, threads, machine):
    """One wanted by itself, one that two kernels read."""
    p = Program(seed=columns)
    x = kept(p, "x", rows, columns)
    check(p, node(op, x), rows, threads, machine, 1e-5)
    s = node(op, node("mul", x, x))
    other = kept(p, "o", rows, 5)
    total = node("sum", node("mul", other, s))
    check(p, node("add", node("mul", x, s), total), rows, threads, machine, 1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 9), ROWS, st.booleans(), THREADS, MACHINES)
def test_rotation(half, heads, beyond, rows, interleaved, threads, machine):
    """Both pairings, normed on the way in or not; dimensions beyond the rotary ones stay."""
    p = Program(seed=half)
    size = 2 * half + beyond
    x = node("reshape", kept(p, "x", rows + 3, heads * size), shape=(T, heads, size))
    if half % 2:
        x = node("rms_norm", x, p.weight("v", size), eps=1e-6)
    y = node("rope", x, node("position", rows=T), theta=100.0, dims=2 * half, interleaved=interleaved)
    y = node("reshape", y, shape=(T, heads * size))
    found = p.run(y, rows, threads, RUNNABLE[machine], start=3)
    # Angles are rounded to f32 by definition, which double precision does not do.
    close(found, p.exact(y, rows, start=3), 1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), ROWS, THREADS, MACHINES)
def test_broadcasting_over_heads(heads, size, rows, threads, machine):
    """Values for each token's heads alike, for each head of all tokens, and one number for each of both."""
    p = Program(seed=size)
    x = node("reshape", kept(p, "x", rows, heads * size), shape=(T, heads, size))
    token = node("reshape", kept(p, "token", rows, size), shape=(T, 1, size))
    number = node("reshape", kept(p, "number", rows, 1), shape=(T, 1, 1))
    head = node("reshape", p.weight("head", heads * size), shape=(heads, size))
    each = p.weight("each", heads, 1)
    y = node("add", node("mul", x, node("mul", head, each)), node("mul", token, number))
    y = node("reshape", y, shape=(T, heads * size))
    check(p, y, rows, threads, machine)


@pytest.mark.parametrize("format", NUMBERS + BLOCKS)
@pytest.mark.parametrize("columns", [1, 70, 512])
def test_embeddings_of_every_format(format, columns):
    """Rows of the table are exact; those of blocks have whole blocks."""
    if format in BLOCKS:
        columns = -(-columns // formats.get(format).elements) * formats.get(format).elements
    p = Program(seed=columns)
    table = p.weight("table", 9, columns, format=format)
    y = node("embed", table, node("tokens", rows=T))
    engine = p.engine(y, threads=2)
    ids = [8, 0, 3, 3, 7]
    expected = p.decoded("table", np.float32)
    assert np.array_equal(engine.step(ids, 0, "all"), expected[ids])
    assert np.array_equal(engine.step([5], 5, "all"), expected[[5]])
    engine.close()


def test_two_embeddings_and_a_scale():
    """What Gemma 4 does for its per-layer inputs: a look-up, scaled, plus another."""
    p = Program(seed=1)
    a = node("embed", p.weight("a", 6, 96, format="q8_0"), node("tokens", rows=T))
    b = node("embed", p.weight("b", 6, 96, format="q4_0"), node("tokens", rows=T))
    y = node("rms_norm", node("add", node("mul", a, const(9.8)), node("mul", b, const(0.7))), eps=1e-6)
    close(p.run(y, 6, 3), p.exact(y, 6))


def written(p: Program, x: Node, plane: str, dtype: str) -> Node:
    return node("cache_write", x, node("position", rows=T), slot=0, plane=plane, dtype=dtype)


@pytest.mark.parametrize("machine", [m for m in ("16 lanes", "sse2", "avx2") if m in RUNNABLE])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("heads", "size"), [(1, 5), (3, 33)])
def test_cache_planes(heads, size, dtype, machine):
    """Heads land at their slot, position modulo capacity, rounded as the element type keeps them."""
    p = Program(seed=size)
    k, v, q = (node("reshape", p.input(name, 64, heads * size), shape=(T, heads, size)) for name in ("k", "v", "q"))
    k = node("mul", k, const(1.7))  # written by the kernel that computes them
    planes = [written(p, x, plane, dtype) for x, plane in ((k, "k"), (v, "v"))]
    out = node("attend", q, *planes, node("position", rows=T), scale=1.0, window=5)
    y = node("reshape", out, shape=(T, heads * size))
    engine = p.engine(y, 2, RUNNABLE[machine], context=64, chunk=6, cache=dtype)
    for start in (0, 6, 12):
        engine.step(range(6), start, "all")
    engine.step([0], 18)
    for name, factor in (("k", np.float32(1.7)), ("v", np.float32(1))):
        plane = engine.planes[0, name]
        assert plane.capacity == 5 + 6
        values = p.decoded(name, np.float32).reshape(64, heads, size) * factor
        bits = np.array(plane.memory).reshape(heads, plane.capacity, size)
        kept_values = bits if dtype == "f32" else widened(bits, dtype)
        for position in range(19 - plane.capacity, 19):
            assert np.array_equal(kept_values[:, position % plane.capacity], rounded(values[position], dtype))
    engine.close()


def widened(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_cache_keeps_special_values():
    """Too large for f16 is infinity, NaN stays NaN, tiny numbers become subnormal."""
    p = Program(seed=0)
    values = np.array([[1e6, -1e6, 65519, 65520, 6e-8, 1e-9, -0.0, np.nan]], np.float32)
    x = node("embed", p.add("x", values, (1, 8)), node("position", rows=T))
    heads = node("reshape", x, shape=(T, 1, 8))
    k = written(p, heads, "k", "f16")
    out = node("attend", heads, k, written(p, heads, "v", "f16"), node("position", rows=T), scale=1.0)
    engine = p.engine(node("reshape", out, shape=(T, 8)), cache="f16")
    engine.step([0], 0)
    stored = np.array(engine.planes[0, "k"].memory)[:8].view(np.float16)
    with np.errstate(over="ignore"):
        expected = values[0].astype(np.float16)
    assert np.array_equal(stored, expected, equal_nan=True)
    assert np.array_equal(np.signbit(stored), np.signbit(expected))
    engine.close()


def test_nan_stays_in_its_row():
    p = Program(seed=2)
    values = p.rng.normal(size=(4, 33)).astype(np.float32)
    values[1, 7], values[2, 32] = np.nan, np.inf
    x = node("embed", p.add("x", values, (4, 33)), node("position", rows=T))
    for y in (node("softmax", x), node("rms_norm", x, eps=1e-6), node("add", x, node("max", x))):
        found = p.run(y, 4, 2)
        with np.errstate(invalid="ignore"):
            exact = p.exact(y, 4).astype(np.float32)
        close(found[[0, 3]], exact[[0, 3]])
        assert np.array_equal(np.isnan(found[1:3]), np.isnan(exact[1:3]))
