"""THE op table: every op declared once.

A declaration says the op's operands and attributes, how its type follows from theirs (`infer`), what
it computes (`evaluate`, in numpy), what it costs (`flops`), how to draw a random legal use of it
(`sample`), and, for compound ops, what it means in simpler ones (`body`). The verifier, printer,
interpreter, generated docs, property tests and the backends' support tables all read this table.

Shapes are row-major; `...` stands for any leading axes. Unless said otherwise values are f32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .dims import Affine, Dim, product
from .ir import Block, Node, Type, intern_node

Array = NDArray[Any]
F32 = np.float32


class TypeRuleError(ValueError):
    """An op used on operands or attributes it is not defined for."""


class Draw(Protocol):
    """A source of choices: hypothesis in tests, a seeded generator elsewhere."""

    def integer(self, low: int, high: int) -> int: ...
    def pick(self, options: Any) -> Any: ...


@dataclass(frozen=True)
class Sample:
    """A random legal use: operand types, attributes, and the exclusive bound of integer operands."""

    args: tuple[Type, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    below: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    name: str
    operands: tuple[str, ...]  # "w?" may be absent, "args*" are any number
    attrs: Mapping[str, Any]  # name -> default; REQUIRED where there is none
    infer: Callable[..., Type]
    evaluate: Callable[..., Array]
    flops: Callable[..., int]
    traits: frozenset[str]
    sample: Callable[[Draw], Sample] | None
    body: Callable[..., Node] | None
    doc: str

    @property
    def arity(self) -> tuple[int, int]:
        if self.operands and self.operands[-1].endswith("*"):
            return len(self.operands) - 1, 1 << 30
        return sum(not name.endswith("?") for name in self.operands), len(self.operands)


REQUIRED = object()
OPS: dict[str, Op] = {}

# Traits: `elementwise` ops broadcast and act value by value; `row` ops act on each last-axis row alone;
# `token` ops never mix tokens (axis 0), so taking some tokens commutes with them; `view` ops move no
# data; `leaf` ops have no operands; `structure` ops exist in block form or inside fused nodes only.


def op(
    operands: str = "",
    *,
    infer: Callable[..., Type],
    traits: str = "",
    flops: Callable[..., int] = lambda out, *args: 0,
    sample: Callable[[Draw], Sample] | None = None,
    body: Callable[..., Node] | None = None,
    **attrs: Any,
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Declares an op; the decorated function is its numpy meaning: `f(context, *arrays, **attrs)`."""

    def declare(evaluate: Callable[..., Array]) -> Callable[..., Array]:
        name = evaluate.__name__.rstrip("_")
        doc = " ".join((evaluate.__doc__ or "").split())
        names, kinds = tuple(operands.split()), frozenset(traits.split())
        OPS[name] = Op(name, names, attrs, infer, evaluate, flops, kinds, sample, body, doc)
        return evaluate

    return declare


def node(name: str, /, *args: Node, **attrs: Any) -> Node:
    """A checked, interned node. Raises TypeRuleError when the op is not defined for the operands."""
    declared = OPS.get(name)
    if declared is None:
        raise TypeRuleError(f"unknown op `{name}`")
    low, high = declared.arity
    if not low <= len(args) <= high:
        raise TypeRuleError(f"{name} takes {low} to {high} operands ({', '.join(declared.operands)}), not {len(args)}")
    unknown = set(attrs) - set(declared.attrs)
    if unknown:
        raise TypeRuleError(f"{name} has no attribute {', '.join(sorted(unknown))}")
    full = {key: attrs.get(key, default) for key, default in declared.attrs.items()}
    missing = [key for key, value in full.items() if value is REQUIRED]
    if missing:
        raise TypeRuleError(f"{name} needs {', '.join(missing)}")
    kept = tuple((key, value) for key, value in full.items() if not _is_default(value, declared.attrs[key]))
    return intern_node(name, args, kept, declared.infer(*(arg.type for arg in args), **full))


def attributes(item: Node) -> dict[str, Any]:
    """All attributes of a node, defaults filled in."""
    return {**OPS[item.op].attrs, **dict(item.attrs)}


def with_args(item: Node, args: tuple[Node, ...], **attrs: Any) -> Node:
    """The same op on other operands (and attributes)."""
    if args == item.args and not attrs:
        return item
    return node(item.op, *args, **{**dict(item.attrs), **attrs})


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (value.__class__ is default.__class__ and bool(value == default))


def need(condition: bool, message: str) -> None:
    if not condition:
        raise TypeRuleError(message)


# --- leaves -------------------------------------------------------------------------------------------


def _given(type: Type, **_: Any) -> Type:
    return type


@op(infer=_given, traits="leaf structure", name=REQUIRED, type=REQUIRED)
def param(context: Any, name: str, type: Type) -> Array:
    """A parameter of a block."""
    return context.param(name)


@op(infer=lambda rows: Type((rows,), "i32"), traits="leaf token", rows=REQUIRED)
def tokens(context: Any, rows: Dim) -> Array:
    """The token ids of this step."""
    return context.tokens


@op(infer=lambda rows: Type((rows,), "i32"), traits="leaf token", rows=REQUIRED)
def position(context: Any, rows: Dim) -> Array:
    """The position of every token of this step in its sequence, from 0."""
    return context.positions


@op(infer=_given, traits="leaf", name=REQUIRED, type=REQUIRED)
def weight(context: Any, name: str, type: Type) -> Array:
    """A tensor of the model file, in its stored format."""
    return context.weight(name)


@op(infer=lambda value: Type((), "f32"), traits="leaf", value=REQUIRED)
def const(context: Any, value: float) -> Array:
    """A number."""
    return np.asarray(value, F32)


@op(infer=_given, traits="leaf structure", slot=REQUIRED, plane=REQUIRED, type=REQUIRED)
def cache(context: Any, slot: Dim, plane: str, type: Type) -> Array:
    """The K or V plane of another layer's cache, by slot (block form)."""
    return context.cache(slot, plane)


# --- views --------------------------------------------------------------------------------------------


def _reshape(x: Type, shape: tuple[Dim, ...]) -> Type:
    try:
        same = product(x.shape) == product(shape)
    except ValueError as error:
        raise TypeRuleError(f"reshape: {error}") from None
    need(same, f"cannot reshape {list(x.shape)} to {list(shape)}: the number of elements differs")
    return Type(shape, x.dtype)


def _sample_reshape(d: Draw) -> Sample:
    a, b, c = (d.integer(1, 4) for _ in range(3))
    return Sample((Type((a, b * c)),), {"shape": d.pick([(a, b, c), (a * b, c), (a * b * c,)])})


@op("x", infer=_reshape, traits="view", sample=_sample_reshape, shape=REQUIRED)
def reshape(context: Any, x: Array, shape: tuple[Dim, ...]) -> Array:
    """The same elements in another shape."""
    return x.reshape([context.size(dim) for dim in shape])


def _slice(x: Type, axis: int, start: Dim, stop: Dim) -> Type:
    need(0 <= axis < len(x.shape), f"slice: axis {axis} of {list(x.shape)}")
    length = stop - start
    if all(isinstance(d, int) for d in (start, stop, x.shape[axis])):
        need(0 <= start < stop <= x.shape[axis], f"slice {start}:{stop} of an axis of {x.shape[axis]}")  # type: ignore[operator]
    need(x.dtype in ("f32", "i32") or axis < len(x.shape) - 1, "a stored weight can only be sliced along rows")
    return Type((*x.shape[:axis], length, *x.shape[axis + 1 :]), x.dtype)


def _sample_slice(d: Draw) -> Sample:
    shape = tuple(d.integer(1, 5) for _ in range(d.integer(1, 3)))
    axis = d.integer(0, len(shape) - 1)
    start = d.integer(0, shape[axis] - 1)
    return Sample((Type(shape),), {"axis": axis, "start": start, "stop": d.integer(start + 1, shape[axis])})


@op("x", infer=_slice, traits="view", sample=_sample_slice, axis=REQUIRED, start=REQUIRED, stop=REQUIRED)
def slice_(context: Any, x: Array, axis: int, start: Dim, stop: Dim) -> Array:
    """Elements start to stop (exclusive) of one axis."""
    index = [np.s_[:]] * x.ndim
    index[axis] = np.s_[context.size(start) : context.size(stop)]
    return x[tuple(index)]


# --- elementwise ----------------------------------------------------------------------------------------


def broadcast(*types: Type) -> Type:
    """numpy's rule on shapes that may be symbolic."""
    rank = max(len(t.shape) for t in types)
    padded = [(1,) * (rank - len(t.shape)) + t.shape for t in types]
    shape: list[Dim] = []
    for dims in zip(*padded, strict=True):
        sizes = {dim for dim in dims if dim != 1}
        need(len(sizes) <= 1, f"shapes do not broadcast: {', '.join(str(list(t.shape)) for t in types)}")
        shape.append(sizes.pop() if sizes else 1)
    return Type(tuple(shape), "f32")


def _sample_two(d: Draw) -> Sample:
    shape = tuple(d.integer(1, 19) for _ in range(d.integer(1, 3)))
    other = d.pick([shape, shape[-1:], (), (*shape[:-1], 1)])
    return Sample((Type(shape), Type(other)))


def _sample_one(d: Draw) -> Sample:
    return Sample((Type(tuple(d.integer(1, 19) for _ in range(d.integer(1, 3)))),))


def _count(out: tuple[int, ...], *args: Any) -> int:
    return int(np.prod(out))


def _arithmetic(name: str, function: Callable[[Array, Array], Array], doc: str) -> None:
    def evaluate(context: Any, a: Array, b: Array) -> Array:
        return function(a, b)

    evaluate.__name__, evaluate.__doc__ = name, doc
    op("a b", infer=broadcast, traits="elementwise row token", flops=_count, sample=_sample_two)(evaluate)


_arithmetic("add", np.add, "a + b, broadcast as numpy does.")
_arithmetic("sub", np.subtract, "a - b.")
_arithmetic("mul", np.multiply, "a * b.")
_arithmetic("div", np.divide, "a / b.")


def _unary(name: str, function: Callable[[Array], Array], doc: str, body: Callable[..., Node] | None = None) -> None:
    def evaluate(context: Any, x: Array) -> Array:
        return function(x)

    evaluate.__name__, evaluate.__doc__ = name, doc
    op("x", infer=broadcast, traits="elementwise row token", flops=_count, sample=_sample_one, body=body)(evaluate)


def _number(value: float) -> Node:
    return node("const", value=value)


def _gelu_body(x: Node) -> Node:
    cubic = node("mul", node("mul", node("mul", x, x), x), _number(0.044715))
    inner = node("mul", node("add", x, cubic), _number((2 / np.pi) ** 0.5))
    return node("mul", node("mul", x, _number(0.5)), node("add", node("tanh", inner), _number(1.0)))


def _silu_body(x: Node) -> Node:
    return node("div", x, node("add", node("exp", node("mul", x, _number(-1.0))), _number(1.0)))


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) is inf far left, and x / inf is the right zero
        return x / (F32(1) + np.exp(-x))


_unary("exp", np.exp, "e to the x.")
_unary("tanh", np.tanh, "Hyperbolic tangent.")
_unary("rsqrt", lambda x: F32(1) / np.sqrt(x), "1 / sqrt(x).")
_unary(
    "gelu",
    lambda x: F32(0.5) * x * (F32(1) + np.tanh(F32((2 / np.pi) ** 0.5) * (x + F32(0.044715) * x * x * x))),
    "GELU, tanh form (Hendrycks and Gimpel 2016, section 2).",
    _gelu_body,
)
_unary("silu", _silu, "x * sigmoid(x) (Elfwing et al. 2018).", _silu_body)


def _softcap_body(x: Node, cap: float) -> Node:
    return node("mul", node("tanh", node("mul", x, _number(1 / cap))), _number(cap))


@op(
    "x",
    infer=lambda x, cap: broadcast(x),
    traits="elementwise row token",
    flops=_count,
    sample=lambda d: Sample(_sample_one(d).args, {"cap": float(d.integer(1, 50))}),
    body=_softcap_body,
    cap=REQUIRED,
)
def softcap(context: Any, x: Array, cap: float) -> Array:
    """cap * tanh(x / cap): keeps logits within +-cap (Gemma 2 report, section 2)."""
    return np.tanh(x / F32(cap)) * F32(cap)


# --- along a row ----------------------------------------------------------------------------------------


def _reduction(name: str, function: Callable[..., Array], doc: str) -> None:
    def evaluate(context: Any, x: Array) -> Array:
        return function(x, axis=-1, keepdims=True)

    def infer(x: Type) -> Type:
        need(len(x.shape) > 0, f"{name} needs at least one axis")
        return Type((*x.shape[:-1], 1))

    evaluate.__name__, evaluate.__doc__ = name, doc
    work = lambda out, x: int(np.prod(x))  # noqa: E731
    op("x", infer=infer, traits="row", flops=work, sample=_sample_one)(evaluate)


_reduction("sum", np.sum, "Sum over the last axis, which stays with length 1.")
_reduction("mean", np.mean, "Mean over the last axis, which stays with length 1.")
_reduction("max", np.max, "Maximum over the last axis, which stays with length 1.")


def _rms_type(x: Type, w: Type | None = None, *, eps: float) -> Type:
    need(len(x.shape) > 0, "rms_norm needs at least one axis")
    if w is not None:
        need(w.shape == x.shape[-1:], f"rms_norm: the weight is {list(w.shape)}, the rows are {x.shape[-1]} long")
    return Type(x.shape)


def _rms_body(x: Node, w: Node | None = None, *, eps: float) -> Node:
    power = node("mean", node("mul", x, x))
    scaled = node("mul", x, node("rsqrt", node("add", power, _number(eps))))
    return node("mul", scaled, w) if w is not None else scaled


def _sample_rms(d: Draw) -> Sample:
    x = _sample_one(d).args[0]
    return Sample((x, Type(x.shape[-1:])) if d.pick([True, False]) else (x,), {"eps": 1e-6})


@op(
    "x w?",
    infer=_rms_type,
    traits="row token",
    flops=lambda out, x, w=None: 4 * int(np.prod(x)),
    sample=_sample_rms,
    body=_rms_body,
    eps=REQUIRED,
)
def rms_norm(context: Any, x: Array, w: Array | None = None, *, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps), times w where there is one (Zhang and Sennrich 2019, equation 4)."""
    scaled = x * (F32(1) / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + F32(eps)))
    return scaled if w is None else scaled * w


def _softmax_body(x: Node) -> Node:
    shifted = node("exp", node("sub", x, node("max", x)))
    return node("div", shifted, node("sum", shifted))


@op(
    "x",
    infer=lambda x: Type(x.shape),
    traits="row",
    flops=lambda out, x: 4 * int(np.prod(x)),
    sample=_sample_one,
    body=_softmax_body,
)
def softmax(context: Any, x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def _top_type(x: Type, k: int) -> Type:
    last = x.shape[-1]
    need(isinstance(last, int) and 0 < k <= last, f"top {k} of {last}")
    return Type((*x.shape[:-1], k), "i32")


def _sample_top(d: Draw) -> Sample:
    rows, n = d.integer(1, 5), d.integer(1, 17)
    return Sample((Type((rows, n)),), {"k": d.integer(1, n)})


@op("x", infer=_top_type, traits="row", sample=_sample_top, k=REQUIRED)
def top(context: Any, x: Array, k: int) -> Array:
    """Indices of the k largest values of each row, largest first; of equal values the earlier."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k].astype(np.int32)


def _take_type(x: Type, ids: Type) -> Type:
    need(ids.dtype == "i32", "take needs integer ids")
    need(len(x.shape) == 1 or x.shape[:-1] == ids.shape[:-1], f"take: {list(x.shape)} by {list(ids.shape)}")
    return Type(ids.shape)


def _sample_take(d: Draw) -> Sample:
    rows, n, k = d.integer(1, 4), d.integer(1, 9), d.integer(1, 5)
    x = Type((rows, n)) if d.pick([True, False]) else Type((n,))
    return Sample((x, Type((rows, k), "i32")), below={1: n})


@op("x ids", infer=_take_type, traits="row", sample=_sample_take)
def take(context: Any, x: Array, ids: Array) -> Array:
    """Values of each row at that row's ids; a vector serves every row."""
    return x[ids] if x.ndim == 1 else np.take_along_axis(x, ids, axis=-1)


# --- matrices ---------------------------------------------------------------------------------------------


def _linear_type(x: Type, w: Type) -> Type:
    need(len(w.shape) == 2, f"linear needs a matrix, not {list(w.shape)}")
    need(x.shape[-1] == w.shape[1], f"linear: the weight is {w.shape[0]}x{w.shape[1]}, the input rows are {x.shape[-1]}")
    return Type((*x.shape[:-1], w.shape[0]))


def _sample_linear(d: Draw) -> Sample:
    rows, k, n = d.integer(1, 6), d.integer(1, 40), d.integer(1, 23)
    return Sample((Type((rows, k)), Type((n, k))))


@op(
    "x w",
    infer=_linear_type,
    traits="token",
    flops=lambda out, x, w: 2 * int(np.prod(x)) * w[0],
    sample=_sample_linear,
)
def linear(context: Any, x: Array, w: Array) -> Array:
    """x [..., K] by a weight of N rows [N, K]: x @ w^T, [..., N]."""
    return x @ w.T


def _expert_type(x: Type, w: Type, ids: Type) -> Type:
    need(len(w.shape) == 3 and ids.dtype == "i32", "expert_linear needs weights [E, N, K] and integer ids")
    need(x.shape[-1] == w.shape[2], f"expert_linear: weights of {w.shape[2]} columns, input rows of {x.shape[-1]}")
    shared = x.shape[:-1] == ids.shape[:-1]
    need(shared or x.shape[:-1] == ids.shape, f"expert_linear: input {list(x.shape)}, ids {list(ids.shape)}")
    return Type((*ids.shape, w.shape[1]))


def _sample_expert(d: Draw) -> Sample:
    rows, used, experts = d.integer(1, 4), d.integer(1, 3), d.integer(3, 5)
    k, n = d.integer(1, 24), d.integer(1, 12)
    x = d.pick([(rows, k), (rows, used, k)])
    return Sample((Type(x), Type((experts, n, k)), Type((rows, used), "i32")), below={2: experts})


@op(
    "x w ids",
    infer=_expert_type,
    traits="token",
    flops=lambda out, x, w, ids: 2 * int(np.prod(out)) * w[2],
    sample=_sample_expert,
)
def expert_linear(context: Any, x: Array, w: Array, ids: Array) -> Array:
    """Each row by the weights of its own experts: x [T, K] or [T, U, K], w [E, N, K], ids [T, U] -> [T, U, N]."""
    shared = x.ndim == ids.ndim
    out = np.empty((*ids.shape, w.shape[1]), F32)
    for at in np.ndindex(*ids.shape):
        out[at] = w[ids[at]] @ x[at[:-1] if shared else at]
    return out


def _combine_type(x: Type, w: Type) -> Type:
    need(x.shape[:-1] == w.shape and len(w.shape) > 1, f"combine: values {list(x.shape)}, weights {list(w.shape)}")
    return Type((*x.shape[:-2], x.shape[-1]))


def _sample_combine(d: Draw) -> Sample:
    rows, used, n = d.integer(1, 4), d.integer(1, 4), d.integer(1, 21)
    return Sample((Type((rows, used, n)), Type((rows, used))))


@op("x w", infer=_combine_type, traits="token", flops=lambda out, x, w: 2 * int(np.prod(x)), sample=_sample_combine)
def combine(context: Any, x: Array, w: Array) -> Array:
    """The weighted sum of several vectors a token: x [T, U, N], w [T, U] -> [T, N]."""
    return np.einsum("...un,...u->...n", x, w).astype(F32)


def _embed_type(w: Type, ids: Type) -> Type:
    need(len(w.shape) == 2 and ids.dtype == "i32", "embed needs a table [V, N] and integer ids")
    return Type((*ids.shape, w.shape[1]))


def _sample_embed(d: Draw) -> Sample:
    v, n, t = d.integer(1, 9), d.integer(1, 40), d.integer(1, 5)
    return Sample((Type((v, n)), Type((t,), "i32")), below={1: v})


@op("w ids", infer=_embed_type, traits="row token", sample=_sample_embed)
def embed(context: Any, w: Array, ids: Array) -> Array:
    """Rows of a table [V, N] by ids [T]: [T, N]."""
    return w[ids]


@op("w", infer=lambda w: Type(w.shape), sample=_sample_one)
def dequant(context: Any, w: Array) -> Array:
    """A small stored weight (a norm, a scale) as f32."""
    return w.astype(F32)


# --- positions and attention -----------------------------------------------------------------------------------


def inverse_frequencies(theta: float, dims: int, scale: float, freqs: Array | None = None) -> Array:
    """float32[dims/2]: scale * theta ** (-2 i / dims) (Su et al. 2021, section 3.2.2), divided by `freqs`."""
    inverse = (1.0 / float(theta) ** (np.arange(0, dims, 2, dtype=np.float64) / dims)).astype(F32)
    if freqs is not None:
        inverse = inverse / freqs.astype(F32)
    return inverse * F32(scale)


def _table_type(pos: Type, freqs: Type | None = None, *, theta: float, dims: int, scale: float) -> Type:
    need(dims > 0 and dims % 2 == 0, f"rope turns pairs: {dims} dimensions are no even number")
    if freqs is not None:
        need(freqs.shape == (dims // 2,), f"rope: {dims // 2} frequency factors wanted, {list(freqs.shape)} given")
    return Type((*pos.shape, dims // 2, 2))


@op("pos freqs?", infer=_table_type, traits="token", theta=REQUIRED, dims=REQUIRED, scale=1.0)
def rope_table(
    context: Any, pos: Array, freqs: Array | None = None, *, theta: float, dims: int, scale: float
) -> Array:
    """Cosine and sine of every position's angles: [T, dims/2, 2]. Angles are rounded to f32 first, as peers do."""
    inverse = inverse_frequencies(theta, dims, scale, freqs)
    angle = (pos.astype(F32)[:, None] * inverse).astype(np.float64)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(F32)


def _rotate_type(x: Type, table: Type, *, interleaved: bool) -> Type:
    need(len(x.shape) == 3 and table.dtype == "f32", f"rope needs heads [T, H, D], not {list(x.shape)}")
    need(x.shape[0] == table.shape[0], f"rope: {x.shape[0]} tokens, {table.shape[0]} positions")
    half, size = table.shape[1], x.shape[2]
    fits = isinstance(half, int) and isinstance(size, int) and 2 * half <= size
    need(fits, f"rope: {half} pairs do not fit into heads of {size}")
    return Type(x.shape)


def _sample_rotate(d: Draw) -> Sample:
    rows, heads, half = d.integer(1, 4), d.integer(1, 3), d.integer(1, 12)
    size = 2 * half + d.integer(0, 3)
    return Sample((Type((rows, heads, size)), Type((rows, half, 2))), {"interleaved": d.pick([True, False])})


@op(
    "x table",
    infer=_rotate_type,
    traits="row token",
    flops=lambda out, x, t: 3 * int(np.prod(x)),
    sample=_sample_rotate,
    interleaved=False,
)
def rotate(context: Any, x: Array, table: Array, *, interleaved: bool) -> Array:
    """Turns pairs of each head by the table's angles. Pair i is (i, i + dims/2), or (2i, 2i + 1) if interleaved."""
    half = table.shape[1]
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    first, second = (np.s_[0 : 2 * half : 2], np.s_[1 : 2 * half : 2]) if interleaved else (np.s_[:half], np.s_[half : 2 * half])
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def _rope_body(x: Node, pos: Node, freqs: Node | None = None, *, interleaved: bool, **attrs: Any) -> Node:
    rest = (freqs,) if freqs is not None else ()
    return node("rotate", x, node("rope_table", pos, *rest, **attrs), interleaved=interleaved)


def _rope_type(x: Type, pos: Type, freqs: Type | None = None, *, interleaved: bool, **attrs: Any) -> Type:
    return _rotate_type(x, _table_type(pos, freqs, **attrs), interleaved=interleaved)


def _sample_rope(d: Draw) -> Sample:
    rotated = _sample_rotate(d)
    x, table = rotated.args
    pos, half = Type(x.shape[:1], "i32"), table.shape[1]
    args = (x, pos, Type((half,))) if d.pick([True, False]) else (x, pos)
    theta = d.pick([100.0, 10000.0])
    return Sample(args, {**rotated.attrs, "theta": theta, "dims": 2 * int(str(half))}, below={1: 60})


@op(
    "x pos freqs?",
    infer=_rope_type,
    traits="token",
    flops=lambda out, x, *rest: 3 * int(np.prod(x)),
    sample=_sample_rope,
    body=_rope_body,
    theta=REQUIRED,
    dims=REQUIRED,
    scale=1.0,
    interleaved=False,
)
def rope(context: Any, x: Array, pos: Array, freqs: Array | None = None, *, interleaved: bool, **attrs: Any) -> Array:
    """Rotary position embedding of heads [T, H, D] (Su et al. 2021): `rotate` by `rope_table`."""
    return rotate(context, x, rope_table(context, pos, freqs, **attrs), interleaved=interleaved)


CACHE_DTYPES = ("f32", "f16", "bf16")


def rounded(x: Array, dtype: str) -> Array:
    """f32 values as a cache of that element type keeps them (round to nearest even)."""
    if dtype == "f16":
        return x.astype(np.float16).astype(F32)
    if dtype == "bf16":
        bits = np.ascontiguousarray(x, F32).view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(F32)
    return x


def _write_type(x: Type, pos: Type, slot: Dim, plane: str, dtype: str) -> Type:
    need(len(x.shape) == 3, f"a cache takes heads [T, H, D], not {list(x.shape)}")
    need(dtype in CACHE_DTYPES, f"no cache of {dtype}; there are {', '.join(CACHE_DTYPES)}")
    return Type((CAPACITY, *x.shape[1:]), dtype)


CAPACITY = Affine((("C", 1),))


@op("x pos", infer=_write_type, traits="effect", slot=REQUIRED, plane=REQUIRED, dtype="f32")
def cache_write(context: Any, x: Array, pos: Array, slot: int, plane: str, dtype: str) -> Array:
    """Appends heads [T, H, D] to a K or V plane at their positions; the plane [C, H, D] as it then is."""
    return context.append(slot, plane, rounded(x, dtype), pos)


def _attend_type(
    q: Type, k: Type, v: Type, pos: Type, *, scale: float, window: int | None, softcap: float | None
) -> Type:
    need(len(q.shape) == len(k.shape) == len(v.shape) == 3, "attend needs q [T, H, D], k [C, G, D], v [C, G, E]")
    need(q.shape[2] == k.shape[2], f"attend: query heads of {q.shape[2]}, key heads of {k.shape[2]}")
    need(k.shape[:2] == v.shape[:2], f"attend: keys {list(k.shape)}, values {list(v.shape)}")
    heads, groups = q.shape[1], k.shape[1]
    fits = isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0
    need(fits, f"attend: {heads} query heads do not divide among {groups} key heads")
    need(q.shape[0] == pos.shape[0], f"attend: {q.shape[0]} queries, {pos.shape[0]} positions")
    return Type((*q.shape[:2], v.shape[2]))


def _sample_attend(d: Draw) -> Sample:
    rows, groups, share = d.integer(1, 4), d.integer(1, 3), d.integer(1, 3)
    length, size, vsize = d.integer(1, 12), d.integer(1, 20), d.integer(1, 20)
    q, k, v = (rows, groups * share, size), (length, groups, size), (length, groups, vsize)
    attrs = {"scale": d.pick([1.0, 0.125]), "window": d.pick([None, 1, 3]), "softcap": d.pick([None, 5.0])}
    return Sample((Type(q), Type(k), Type(v), Type((rows,), "i32")), attrs, below={3: length})


@op(
    "q k v pos",
    infer=_attend_type,
    traits="token",
    flops=lambda out, q, k, v, pos: 2 * int(np.prod(q)) * k[0] + 2 * int(np.prod(out)) * v[0],
    sample=_sample_attend,
    scale=REQUIRED,
    window=None,
    softcap=None,
)
def attend(
    context: Any, q: Array, k: Array, v: Array, pos: Array, *, scale: float, window: int | None, softcap: float | None
) -> Array:
    """Causal attention (Vaswani et al. 2017, equation 1) of queries at `pos` over cached positions j <= pos,
    and j > pos - window where there is a window; q [T, H, D], k [C, G, D], v [C, G, E] -> [T, H, E]."""
    share = q.shape[1] // k.shape[1]
    scores = np.einsum("thd,chd->thc", q, np.repeat(k, share, axis=1)) * F32(scale)
    if softcap is not None:
        scores = np.tanh(scores / F32(softcap)) * F32(softcap)
    at = np.arange(k.shape[0])
    seen = at <= pos[:, None]
    if window is not None:
        seen &= at > pos[:, None] - window
    scores = np.where(seen[:, None, :], scores, F32(-np.inf))
    return np.einsum("thc,chd->thd", softmax(context, scores), np.repeat(v, share, axis=1)).astype(F32)


# --- structure ------------------------------------------------------------------------------------------------


def _call_type(*args: Type, block: Block) -> Type:
    need(len(args) == len(block.params), f"{block.name} takes {len(block.params)} values, not {len(args)}")
    for given, wanted in zip(args, block.params, strict=True):
        need(given == wanted.type, f"{block.name}: {wanted['name']} is {wanted.type}, not {given}")
    return block.result.type


@op("args*", infer=_call_type, traits="structure", block=REQUIRED)
def call(context: Any, *args: Array, block: Block) -> Array:
    """A block applied to values (block form)."""
    return context.run(block, args)


@op("args*", infer=lambda *args, table: args[0], traits="structure", table=REQUIRED)
def layers(context: Any, x: Array, *rest: Array, table: tuple[tuple[int, Block], ...]) -> Array:
    """The layer stack (block form): each layer's block on the state and on what all layers share."""
    for index, block in table:
        x = context.run(block, (x, *rest), index)
    return x


@op("args*", infer=lambda *args, block, family: _call_type(*args, block=block), block=REQUIRED, family=REQUIRED)
def fused(context: Any, *args: Array, block: Block, family: str) -> Array:
    """A block that a backend runs as one kernel of a family; it means what its body means."""
    return context.run(block, args)
