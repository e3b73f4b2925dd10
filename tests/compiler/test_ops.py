"""Every op of the table: its type rule, its value against an independent formula, its body."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from briolette.compiler.codecs import signs
from briolette.compiler.dims import evaluate
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Type
from briolette.compiler.ops import CACHE_DTYPES, OPS, TypeRuleError, attributes, node, rounded

sys.path.insert(0, str(Path(__file__).parent))
from strategies import uses

SAMPLED = [name for name, op in OPS.items() if op.sample is not None]


def run(item, arrays):
    interpreter = Interpreter(lambda name: arrays[0])
    given = dict(zip(item.args, arrays, strict=True))
    return interpreter.evaluate([item], given)[0]


def rows(x):
    """A numpy array as a list of its last-axis rows."""
    return x.reshape(-1, x.shape[-1])


def attend(q, k, v, pos, near_k=None, near_v=None, *, scale, window, softcap, sink, recent, shared, **bits):
    assert not any(bits.values())  # only planes of codes take such, and these samples are of numbers
    if shared:
        k, near_k = (
            None if x is None else np.concatenate([x, y[..., shared:]], -1) for x, y in ((k, v), (near_k, near_v))
        )
    out = np.zeros((*q.shape[:2], v.shape[2]))
    share = q.shape[1] // k.shape[1]
    for t, h in np.ndindex(*q.shape[:2]):
        seen = [j for j in range(len(k)) if j <= pos[t] and (window is None or j > pos[t] - window)]
        near = [near_k is not None and (j < sink or j > pos[t] - recent) for j in seen]
        keys, values = (
            [(b if n else a)[j, h // share] for j, n in zip(seen, near, strict=True)]
            for a, b in ((k, near_k), (v, near_v))
        )
        scores = np.array([q[t, h] @ key * scale for key in keys])
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        e = np.exp(scores - scores.max())
        out[t, h] = sum(p * value for p, value in zip(e / e.sum(), values, strict=True))
    return out


def rotary_first(x, w=None, *, pairs, half, inverse):
    turned = [i for i in range(half) if i < pairs] + [i + half for i in range(half) if i < pairs]
    others = [i for i in range(x.shape[-1]) if i not in turned]
    matrix = np.zeros((x.shape[-1], x.shape[-1]))
    for place, i in enumerate(turned + others):
        matrix[place, i] = 1 if w is None or i in turned else w[i]
    return x @ (matrix if inverse else matrix.T)


def hadamard(x, *, block, inverse):
    """By the matrix: (-1) ** (bits that i and j share), which is its own inverse but for the signs."""
    size = x.shape[-1]
    n = block or size
    matrix = np.array([[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)]) / np.sqrt(n)
    whole = np.kron(np.eye(size // n), matrix) * signs(size)
    return x @ (whole if inverse else whole.T)


def rotate(x, table, *, interleaved):
    half = table.shape[1]
    out = x.copy()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        turned = (x[..., a] + 1j * x[..., b]) * (table[:, None, i, 0] + 1j * table[:, None, i, 1])
        out[..., a], out[..., b] = turned.real, turned.imag
    return out


def rope_table(pos, freqs=None, *, theta, dims, scale):
    """Angles are rounded to f32 by definition, as peers round them: far positions turn visibly otherwise."""
    inverse = np.float32(theta ** (-np.arange(0, dims, 2) / dims))
    inverse = inverse if freqs is None else inverse / np.float32(freqs)
    turned = np.exp(1j * np.float64(np.float32(pos[:, None]) * (inverse * np.float32(scale))))
    return np.stack([turned.real, turned.imag], -1)


def rope(x, pos, freqs=None, *, interleaved, **attrs):
    return rotate(x, rope_table(pos, freqs, **attrs), interleaved=interleaved)


def expert_linear(x, w, ids, order=None):
    shared = x.ndim == ids.ndim
    return np.array([[w[e] @ (x[t] if shared else x[t, u]) for u, e in enumerate(row)] for t, row in enumerate(ids)])


def kept(value: float, dtype: str) -> float:
    """One number as a cache keeps it, to the nearest, ties to even; by arithmetic alone."""
    if dtype == "f32" or value == 0:
        return value
    digits, least = (11, -24) if dtype == "f16" else (8, -133)  # bits of a significand; the smallest step
    step = 2.0 ** max(math.frexp(value)[1] - digits, least)
    return round(value / step) * step  # Python rounds ties to even


def cache_write(x, pos, *, slot, plane, dtype, sink):
    plane = np.zeros((pos.max() + 1, *x.shape[1:]))
    for t, h, d in np.ndindex(*x.shape):
        plane[pos[t], h, d] = kept(float(x[t, h, d]), dtype)
    return plane


def quantize(x, tile, bits, block):
    """In float32, as it is defined: at a half, other digits round another way."""
    out = np.float32(x)
    for part in out.reshape(-1, block):
        step = max(map(abs, part)) / np.float32({8: 127, 16: 16256}[bits])
        part[:] = [np.rint(value * (1 / step)) * step for value in part] if step else 0
    return out


# In float64, in other words than the table's own.
FORMULAS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "exp": lambda x: np.e**x,
    "tanh": lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1),
    "gelu": lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softcap": lambda x, cap: cap * np.tanh(x / cap),
    "sum": lambda x: np.array([[r.sum()] for r in rows(x)]).reshape(*x.shape[:-1], 1),
    "mean": lambda x: np.array([[r.sum() / len(r)] for r in rows(x)]).reshape(*x.shape[:-1], 1),
    "max": lambda x: np.array([[sorted(r)[-1]] for r in rows(x)]).reshape(*x.shape[:-1], 1),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "rms_norm": lambda x, w=1.0, *, eps: x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w,
    "linear": lambda x, w: np.einsum("...k,nk->...n", x, w),
    "expert_linear": expert_linear,
    "group": lambda ids, experts: np.array([p for e in range(experts) for p, i in enumerate(ids.ravel()) if i == e]),
    "combine": lambda x, w: (x * w[..., None]).sum(-2),
    "embed": lambda w, ids: np.array([w[i] for i in ids]),
    "take": lambda x, ids: np.array([(x if x.ndim == 1 else x[r])[i] for r, i in enumerate(ids)]),
    "top": lambda x, k: np.array([sorted(range(len(r)), key=lambda i: (-r[i], i))[:k] for r in rows(x)]),
    "rsqrt": lambda x: x**-0.5,
    "reshape": lambda x, shape: np.array(x.ravel().tolist()).reshape(shape),
    "slice": lambda x, axis, start, stop: np.take(x, range(start, stop), axis),
    "dequant": lambda w: w,
    "quantize": quantize,
    "pack": lambda w: w,
    "cache_write": cache_write,
    "rotate": rotate,
    "rope_table": rope_table,
    "rope": rope,
    "attend": attend,
    "hadamard": hadamard,
    "rotary_first": rotary_first,
}


@pytest.mark.parametrize("name", SAMPLED)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_op(name, data):
    use = data.draw(uses(name))
    with np.errstate(all="ignore"):
        value = run(use.node, use.arrays)
        # A cache plane is as long as the highest position written to it.
        capacity = {"C": int(use.arrays[1].max()) + 1} if name == "cache_write" else {}
        assert value.shape == tuple(evaluate(dim, capacity) for dim in use.node.shape)
        assert value.dtype == (np.int32 if use.node.type.dtype == "i32" else np.float32)
        if name in FORMULAS:
            arrays = [a.astype(np.float64) if a.dtype == np.float32 else a for a in use.arrays]
            wanted = FORMULAS[name](*arrays, **attributes(use.node))
            np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=1e-5)
            if value.dtype == np.int32 or name == "cache_write":
                assert np.array_equal(value, wanted)
        body = OPS[name].body
        if body is not None:
            expanded = body(*use.node.args, **attributes(use.node))
            assert expanded.type == use.node.type
            given = dict(zip(use.node.args, use.arrays, strict=True))
            (other,) = Interpreter(lambda name: use.arrays[0]).evaluate([expanded], given)
            np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


def test_the_table_is_complete():
    for name, op in OPS.items():
        assert op.doc, f"{name} has no description"
        assert op.sample is not None or op.traits & {"leaf", "structure"}, name
        assert name in FORMULAS or op.sample is None, f"{name} has no formula in FORMULAS"


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_nan=False, min_value=-65000, max_value=65000), st.sampled_from(CACHE_DTYPES))
def test_caches_round_to_nearest_even(value, dtype):
    assert rounded(np.float32([value]), dtype)[0] == kept(value, dtype)


@given(st.integers(-(2**7), 2**7 - 1), st.sampled_from([("f16", 11), ("bf16", 8)]), st.integers(-10, 4))
def test_caches_round_ties_to_even(steps, kind, power):
    """Values half way between two that a cache can keep."""
    dtype, digits = kind
    value = np.ldexp(2.0 ** (digits - 1) + abs(steps) % 2 ** (digits - 2) + 0.5, power)
    found = float(rounded(np.float32([value]), dtype)[0])
    assert found == kept(float(value), dtype)
    assert np.ldexp(found, -power) % 2 == 0


def test_equal_values_are_chosen_in_order():
    item = node("top", node("param", name="p0", type=Type((2, 5))), k=3)
    assert run(item, [np.float32([[1, 3, 3, 0, 3], [0, 0, 0, 0, 0]])]).tolist() == [[1, 2, 4], [0, 1, 2]]


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "words"),
    [
        ("linear", [(3, 4), (5, 6)], {}, "the weight is 5x6"),
        ("add", [(3, 4), (3, 5)], {}, "broadcast"),
        ("rms_norm", [(3, 4), (5,)], {"eps": 1e-6}, "weight is"),
        ("reshape", [(3, 4)], {"shape": (5, 2)}, "cannot reshape"),
        ("slice", [(3, 4)], {"axis": 1, "start": 2, "stop": 9}, "slice"),
        ("attend", [(2, 3, 4), (5, 2, 4), (5, 2, 4), (2,)], {"scale": 1.0}, "do not divide"),
        ("rotate", [(2, 1, 4), (2, 3, 2)], {}, "do not fit"),
        ("linear", [(3, 4)], {}, "operands"),
        ("gelu", [(3,)], {"cap": 1.0}, "attribute"),
        ("softcap", [(3,)], {}, "needs cap"),
        ("nope", [], {}, "unknown op"),
        ("reshape", [(3, 4)], {"shape": (-3, -4)}, "no shape"),
        ("slice", [(3, 4)], {"axis": 1, "start": 2, "stop": 2}, "slice"),
        ("slice", [(3, 4)], {"axis": 1, "start": -1, "stop": 2}, "slice"),
        ("slice", [(3, 4)], {"axis": 2, "start": 0, "stop": 1}, "axis 2"),
        ("softcap", [(3,)], {"cap": 0.0}, "above 0"),
        ("const", [], {"value": 1}, "a float"),
        ("softmax", [()], {}, "rows of f32"),
        ("top", [(3, 4)], {"k": 5}, "top 5 of 4"),
        ("top", [(3, 4)], {"k": 0}, "top 0 of 4"),
        ("take", [(3, 4), "i32 2 2"], {}, "take"),
        ("take", [(3, 4), (3, 2)], {}, "integer ids"),
        ("add", [(3, 4), "i32 3 4"], {}, "not on i32"),
        ("embed", [(3, 4), (3,)], {}, "integer ids"),
        ("combine", [(3, 4), (3, 4)], {}, "combine"),
        ("dequant", ["i32 3"], {}, "stored weight"),
        ("expert_linear", [(2, 4), (3, 5, 6), "i32 2 1"], {}, "6 columns"),
        ("expert_linear", [(3, 6), (3, 5, 6), "i32 2 1"], {}, "input"),
        ("rope", [(2, 1, 4), "i32 2"], {"theta": 1e4, "dims": 3}, "no even number"),
        ("rope", [(2, 1, 4), "i32 2"], {"theta": 0.0, "dims": 2}, "above 0"),
        ("rope", [(2, 1, 4), "i32 2", (3,)], {"theta": 1e4, "dims": 4}, "2 frequency factors"),
        ("rope", [(2, 1, 4), "i32 3"], {"theta": 1e4, "dims": 4}, "2 tokens, 3 positions"),
        ("cache_write", [(2, 1, 4), "i32 2"], {"slot": 0, "plane": "q"}, "planes k, v"),
        ("cache_write", [(2, 1, 4), "i32 2"], {"slot": 0, "plane": "k", "dtype": "f8"}, "no cache of f8"),
        ("attend", [(2, 2, 4), (5, 2, 4), (5, 2, 4), "i32 2"], {"scale": 1.0, "window": 0}, "sees nothing"),
        ("attend", [(2, 0, 4), (5, 0, 4), (5, 0, 4), "i32 2"], {"scale": 1.0}, "do not divide"),
        ("attend", [(2, 2, 4), (5, 2, 3), (5, 2, 4), "i32 2"], {"scale": 1.0}, "query heads of 4"),
        ("attend", [(2, 2, 4), (5, 2, 4), (6, 2, 4), "i32 2"], {"scale": 1.0}, "values"),
        ("attend", [(2, 2, 4), (5, 2, 4), (5, 2, 4), "i32 2"], {"scale": 1.0, "sink": 1}, "near planes"),
        ("attend", [(2, 2, 4), (5, 2, 4), (5, 2, 4), "i32 2"], {"scale": 1.0, "shared": 2}, "2 values of keys"),
        ("rotary_first", [(2, 2, 8)], {"pairs": 3, "half": 2}, "do not fit"),
        ("rotary_first", [(2, 2, 8), (4,)], {"pairs": 2, "half": 2}, "factors"),
        ("hadamard", [(2, 2, 24)], {}, "no blocks of a power of two"),
        ("hadamard", [(2, 2, 24)], {"block": 16}, "no blocks of a power of two, 16"),
        ("layers", [], {"table": ()}, "at least 1"),
    ],
)
def test_misuse_is_explained(op, shapes, attrs, words):
    types = [
        Type(shape) if isinstance(shape, tuple) else Type(tuple(map(int, shape.split()[1:])), "i32") for shape in shapes
    ]
    args = [node("param", name=f"p{i}", type=type) for i, type in enumerate(types)]
    with pytest.raises(TypeRuleError, match=words):
        node(op, *args, **attrs)
