"""Every op of the table: its type rule, its value against an independent formula, its body."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from briolette.compiler.dims import evaluate
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Type
from briolette.compiler.ops import OPS, TypeRuleError, attributes, node

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


def attend(q, k, v, pos, *, scale, window, softcap):
    out = np.zeros((*q.shape[:2], v.shape[2]))
    share = q.shape[1] // k.shape[1]
    for t, h in np.ndindex(*q.shape[:2]):
        seen = [j for j in range(len(k)) if j <= pos[t] and (window is None or j > pos[t] - window)]
        scores = np.array([q[t, h] @ k[j, h // share] * scale for j in seen])
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        e = np.exp(scores - scores.max())
        out[t, h] = sum(p * v[j, h // share] for p, j in zip(e / e.sum(), seen, strict=True))
    return out


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


def expert_linear(x, w, ids):
    shared = x.ndim == ids.ndim
    return np.array([[w[e] @ (x[t] if shared else x[t, u]) for u, e in enumerate(row)] for t, row in enumerate(ids)])


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
    "combine": lambda x, w: (x * w[..., None]).sum(-2),
    "embed": lambda w, ids: np.array([w[i] for i in ids]),
    "take": lambda x, ids: np.array([(x if x.ndim == 1 else x[r])[i] for r, i in enumerate(ids)]),
    "top": lambda x, k: np.array([sorted(range(len(r)), key=lambda i: (-r[i], i))[:k] for r in rows(x)]),
    "rotate": rotate,
    "rope_table": rope_table,
    "rope": rope,
    "attend": attend,
}


# Numpy's own word for it is the only formula there is; caches are tested with the engines.
PLAIN = {"reshape", "slice", "dequant", "rsqrt", "cache_write"}


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
            np.testing.assert_allclose(value, wanted, rtol=3e-4, atol=3e-5)
        body = OPS[name].body
        if body is not None:
            expanded = body(*use.node.args, **attributes(use.node))
            assert expanded.type == use.node.type
            given = dict(zip(use.node.args, use.arrays, strict=True))
            (other,) = Interpreter(lambda name: use.arrays[0]).evaluate([expanded], given)
            np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)


def test_the_table_is_complete():
    for name, op in OPS.items():
        assert op.doc, f"{name} has no description"
        assert op.sample is not None or op.traits & {"leaf", "structure", "effect"} or name == "fused", name
        assert name in FORMULAS or not op.sample or name in PLAIN, name


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
    ],
)
def test_misuse_is_explained(op, shapes, attrs, words):
    args = [node("param", name=f"p{i}", type=Type(shape)) for i, shape in enumerate(shapes)]
    with pytest.raises(TypeRuleError, match=words):
        node(op, *args, **attrs)
