"""Inputs, views of values, and elementwise arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..dims import Dim, product
from ..ir import Node, Type
from ..optable import REQUIRED, Array, Context, Draw, Sample, TypeRuleError, need, node, op

# --- leaves -------------------------------------------------------------------------------------------


def _given(type: Type, **_: Any) -> Type:
    return type


@op(infer=_given, traits="leaf structure", name=REQUIRED, type=REQUIRED)
def param(context: Context, name: str, type: Type) -> Array:
    """A parameter of a block."""
    return context.param(name)


@op(infer=lambda rows: Type((rows,), "i32"), traits="leaf token", rows=REQUIRED)
def tokens(context: Context, rows: Dim) -> Array:
    """The token ids of this step."""
    return context.tokens


@op(infer=lambda rows: Type((rows,), "i32"), traits="leaf token", rows=REQUIRED)
def position(context: Context, rows: Dim) -> Array:
    """The position of every token of this step in its sequence, from 0."""
    return context.positions


@op(infer=_given, traits="leaf", name=REQUIRED, type=REQUIRED)
def weight(context: Context, name: str, type: Type) -> Array:
    """A tensor of the model file, in its stored format."""
    return context.weight(name)


def _const_type(value: float) -> Type:
    need(value.__class__ is float, f"a constant is a float, not {value!r}")
    return Type(())


@op(infer=_const_type, traits="leaf", value=REQUIRED)
def const(context: Context, value: float) -> Array:
    """A number."""
    return np.asarray(value, context.real)


@op(infer=_given, traits="leaf structure", slot=REQUIRED, plane=REQUIRED, type=REQUIRED)
def cache(context: Context, slot: Dim, plane: str, type: Type) -> Array:
    """The K or V plane of another layer's cache, by slot (block form)."""
    return context.cache(slot, plane)


# --- views --------------------------------------------------------------------------------------------


def _reshape_type(x: Type, shape: tuple[Dim, ...]) -> Type:
    try:
        same = product(x.shape) == product(shape)
    except ValueError as error:
        raise TypeRuleError(f"reshape: {error}") from None
    sizes = all(not isinstance(size, int) or size > 0 for size in shape)
    need(sizes, f"reshape: {list(shape)} is no shape")
    need(same, f"cannot reshape {list(x.shape)} to {list(shape)}: the number of elements differs")
    need(x.dtype in ("f32", "i32"), f"a stored weight ({x.dtype}) has no other shape")
    return Type(shape, x.dtype)


def _sample_reshape(d: Draw) -> Sample:
    a, b, c = (d.integer(1, 4) for _ in range(3))
    return Sample((Type((a, b * c)),), {"shape": d.pick([(a, b, c), (a * b, c), (a * b * c,)])})


@op("x", infer=_reshape_type, traits="view shows", sample=_sample_reshape, shape=REQUIRED)
def reshape(context: Context, x: Array, shape: tuple[Dim, ...]) -> Array:
    """The same elements in another shape."""
    return x.reshape([context.size(dim) for dim in shape])


def _slice_type(x: Type, axis: int, start: Dim, stop: Dim) -> Type:
    need(0 <= axis < len(x.shape), f"slice: axis {axis} of {list(x.shape)}")
    size, length = x.shape[axis], stop - start
    inside = not isinstance(start, int) or start >= 0
    if isinstance(stop, int) and isinstance(size, int):
        inside &= stop <= size
    if isinstance(length, int):
        inside &= length > 0
    need(inside, f"slice {start}:{stop} of an axis of {size}")
    need(x.dtype in ("f32", "i32") or axis < len(x.shape) - 1, "a stored weight can only be sliced along rows")
    return Type((*x.shape[:axis], length, *x.shape[axis + 1 :]), x.dtype)


def _sample_slice(d: Draw) -> Sample:
    shape = tuple(d.integer(1, 5) for _ in range(d.integer(1, 3)))
    axis = d.integer(0, len(shape) - 1)
    start = d.integer(0, shape[axis] - 1)
    return Sample((Type(shape),), {"axis": axis, "start": start, "stop": d.integer(start + 1, shape[axis])})


@op("x", infer=_slice_type, traits="view shows", sample=_sample_slice, axis=REQUIRED, start=REQUIRED, stop=REQUIRED)
def slice_(context: Context, x: Array, axis: int, start: Dim, stop: Dim) -> Array:
    """Elements start to stop (exclusive) of one axis."""
    where = [slice(None)] * x.ndim
    where[axis] = slice(context.size(start), context.size(stop))
    return x[tuple(where)]


# --- elementwise ----------------------------------------------------------------------------------------


def broadcast(*types: Type) -> Type:
    """numpy's rule, on shapes that may be symbolic; of f32 only."""
    for t in types:
        need(t.dtype == "f32", f"arithmetic is on f32, not on {t.dtype}")
    rank = max(len(t.shape) for t in types)
    padded = [(1,) * (rank - len(t.shape)) + t.shape for t in types]
    shape: list[Dim] = []
    for dims in zip(*padded, strict=True):
        sizes = {dim for dim in dims if dim != 1}
        need(len(sizes) <= 1, f"shapes do not broadcast: {', '.join(str(list(t.shape)) for t in types)}")
        shape.append(sizes.pop() if sizes else 1)
    return Type(tuple(shape))


def _sample_two(d: Draw) -> Sample:
    shape = tuple(d.integer(1, 19) for _ in range(d.integer(1, 3)))
    other = d.pick([shape, shape[-1:], (), (*shape[:-1], 1)])
    return Sample((Type(shape), Type(other)))


def sample_one(d: Draw) -> Sample:
    """One f32 operand of one to three axes."""
    return Sample((Type(tuple(d.integer(1, 19) for _ in range(d.integer(1, 3)))),))


def _count(out: tuple[int, ...], *args: Any) -> int:
    return int(np.prod(out))


def _arithmetic(name: str, function: Callable[[Array, Array], Array], doc: str) -> None:
    def evaluate(context: Context, a: Array, b: Array) -> Array:
        return function(a, b)

    evaluate.__name__, evaluate.__doc__ = name, doc
    op("a b", infer=broadcast, traits="elementwise row token", flops=_count, sample=_sample_two)(evaluate)


_arithmetic("add", np.add, "a + b, broadcast as numpy does.")
_arithmetic("sub", np.subtract, "a - b.")
_arithmetic("mul", np.multiply, "a * b.")
_arithmetic("div", np.divide, "a / b.")


def _unary(name: str, function: Callable[[Array], Array], doc: str, body: Callable[..., Node] | None = None) -> None:
    def evaluate(context: Context, x: Array) -> Array:
        return function(x)

    evaluate.__name__, evaluate.__doc__ = name, doc
    traits = "elementwise row token"
    op("x", infer=broadcast, traits=traits, flops=_count, sample=sample_one, body=body)(evaluate)


def number(value: float) -> Node:
    """A constant."""
    return node("const", value=value)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


def _gelu_body(x: Node) -> Node:
    cubic = node("mul", node("mul", node("mul", x, x), x), number(0.044715))
    inner = node("mul", node("add", x, cubic), number((2 / np.pi) ** 0.5))
    return node("mul", node("mul", x, number(0.5)), node("add", node("tanh", inner), number(1.0)))


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) is inf far left, and x / inf is the right zero
        return x / (1 + np.exp(-x))


def _silu_body(x: Node) -> Node:
    return node("div", x, node("add", node("exp", node("mul", x, number(-1.0))), number(1.0)))


_unary("exp", np.exp, "e to the x.")
_unary("tanh", np.tanh, "Hyperbolic tangent.")
_unary("rsqrt", lambda x: 1 / np.sqrt(x), "1 / sqrt(x).")
_unary("gelu", _gelu, "GELU, tanh form (Hendrycks and Gimpel 2016, section 2).", _gelu_body)
_unary("silu", _silu, "x * sigmoid(x) (Elfwing et al. 2018).", _silu_body)


def _softcap_type(x: Type, cap: float) -> Type:
    need(cap > 0, f"a softcap is above 0, not {cap}")
    return broadcast(x)


def _softcap_body(x: Node, cap: float) -> Node:
    return node("mul", node("tanh", node("mul", x, number(1 / cap))), number(cap))


@op(
    "x",
    infer=_softcap_type,
    traits="elementwise row token",
    flops=_count,
    sample=lambda d: Sample(sample_one(d).args, {"cap": float(d.integer(1, 50))}),
    body=_softcap_body,
    cap=REQUIRED,
)
def softcap(context: Context, x: Array, cap: float) -> Array:
    """cap * tanh(x / cap): keeps logits within +-cap (Gemma 2 report, section 2)."""
    return np.tanh(x / cap) * cap
