"""Work along rows of the last axis: sums, norms, softmax, the largest values and look-ups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ir import Node, Type
from ..optable import REQUIRED, Array, Context, Draw, Sample, need, node, op
from .basic import number, sample_one


def _row_type(x: Type) -> Type:
    need(len(x.shape) > 0 and x.dtype == "f32", f"rows of f32 are wanted, not {x}")
    return Type(x.shape)


def _work(per_value: int) -> Callable[..., int]:
    return lambda out, x, *rest: per_value * int(np.prod(x))


def _reduction(name: str, function: Callable[..., Array], doc: str) -> None:
    def evaluate(context: Context, x: Array) -> Array:
        return function(x, axis=-1, keepdims=True)

    def infer(x: Type) -> Type:
        return Type((*_row_type(x).shape[:-1], 1))

    evaluate.__name__, evaluate.__doc__ = name, doc
    op("x", infer=infer, traits="row", flops=_work(1), sample=sample_one)(evaluate)


_reduction("sum", np.sum, "Sum over the last axis, which stays with length 1.")
_reduction("mean", np.mean, "Mean over the last axis, which stays with length 1.")
_reduction("max", np.max, "Maximum over the last axis, which stays with length 1.")


def _rms_type(x: Type, w: Type | None = None, *, eps: float) -> Type:
    if w is not None:
        fits = w.shape == x.shape[-1:] and w.dtype == "f32"
        need(fits, f"rms_norm: the weight is {w}, the rows are {list(x.shape[-1:])} f32")
    return _row_type(x)


def _rms_body(x: Node, w: Node | None = None, *, eps: float) -> Node:
    power = node("mean", node("mul", x, x))
    scaled = node("mul", x, node("rsqrt", node("add", power, number(eps))))
    return node("mul", scaled, w) if w is not None else scaled


def _sample_rms(d: Draw) -> Sample:
    x = sample_one(d).args[0]
    return Sample((x, Type(x.shape[-1:])) if d.pick([True, False]) else (x,), {"eps": 1e-6})


@op("x w?", infer=_rms_type, traits="row", flops=_work(4), sample=_sample_rms, body=_rms_body, eps=REQUIRED)
def rms_norm(context: Context, x: Array, w: Array | None = None, *, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps), times w where there is one (Zhang and Sennrich 2019, equation 4)."""
    scaled = x * (1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))
    return scaled if w is None else scaled * w


def _softmax_body(x: Node) -> Node:
    shifted = node("exp", node("sub", x, node("max", x)))
    return node("div", shifted, node("sum", shifted))


@op("x", infer=_row_type, traits="row", flops=_work(4), sample=sample_one, body=_softmax_body)
def softmax(context: Context, x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def _top_type(x: Type, k: int) -> Type:
    last = _row_type(x).shape[-1]
    need(isinstance(last, int) and 0 < k <= last, f"top {k} of {last}")
    return Type((*x.shape[:-1], k), "i32")


def _sample_top(d: Draw) -> Sample:
    rows, n = d.integer(1, 5), d.integer(1, 17)
    return Sample((Type((rows, n)),), {"k": d.integer(1, n)})


@op("x", infer=_top_type, traits="row", sample=_sample_top, k=REQUIRED)
def top(context: Context, x: Array, k: int) -> Array:
    """Indices of the k largest values of each row, largest first; of equal values the earlier, NaN before all."""
    number = ~np.isnan(x)
    return np.lexsort((np.where(number, -x, 0), number), axis=-1)[..., :k].astype(np.int32)


def _take_type(x: Type, ids: Type) -> Type:
    need(ids.dtype == "i32", f"take needs integer ids, not {ids.dtype}")
    last = _row_type(x).shape[-1]
    need(isinstance(last, int), f"take: rows of {last} values, where a number is wanted")
    aligned = len(x.shape) == 1 or x.shape[:-1] == ids.shape[:-1]
    need(aligned and len(ids.shape) > 0, f"take: {list(x.shape)} by {list(ids.shape)}")
    return Type(ids.shape)


def _sample_take(d: Draw) -> Sample:
    rows, n, k = d.integer(1, 4), d.integer(1, 9), d.integer(1, 5)
    x = Type((rows, n)) if d.pick([True, False]) else Type((n,))
    return Sample((x, Type((rows, k), "i32")), below={1: n})


@op("x ids", infer=_take_type, traits="row", sample=_sample_take)
def take(context: Context, x: Array, ids: Array) -> Array:
    """Values of each row at that row's ids; a vector serves every row."""
    return x[ids] if x.ndim == 1 else np.take_along_axis(x, ids, axis=-1)
