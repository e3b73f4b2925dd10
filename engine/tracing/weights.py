"""A model's weights as the evaluator wants them, decoded when they are read and not kept.

A table of embeddings is most of a small model: it stays in its stored format. Rows that are looked up are
decoded alone, and products go through it in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.backends import formats
from briolette.compiler.header import TensorInfo

LARGE = 1 << 24  # elements from which a tensor is decoded in parts
LONG = 1 << 18  # elements from which products are made in f32 alone
PIECE = 1 << 20  # elements decoded at once: so few that their memory is used again, not mapped anew
KEPT = 4  # decoded tensors that are kept for the next who asks

Array = NDArray[Any]


class LargeTensor:
    """A stored tensor [..., K], uint8[..., bytes of a row]: like an array of f32 to who takes rows or multiplies."""

    __array_ufunc__ = None  # so that `x @ tensor.T` asks the tensor

    def __init__(self, rows: NDArray[np.uint8], format: str, columns: int):
        self.rows, self.format = rows, format
        self.shape, self.ndim = (*rows.shape[:-1], columns), rows.ndim

    def decoded(self, rows: NDArray[np.uint8]) -> Array:
        """Some rows as f32."""
        flat = np.ascontiguousarray(rows).reshape(-1, rows.shape[-1])
        return formats.decode(self.format, flat).reshape(*rows.shape[:-1], self.shape[-1])

    def __getitem__(self, index: Any) -> Any:
        """Rows by number are decoded; a slice of rows is a smaller tensor."""
        if isinstance(index, slice | tuple):
            return LargeTensor(self.rows[index], self.format, self.shape[-1])
        return self.decoded(self.rows[index])

    @property
    def T(self) -> LargeTensor:  # noqa: N802
        """As numpy calls it: only products with the transposed matrix are possible."""
        return self

    def __rmatmul__(self, x: Array) -> Array:
        return self.products([x])[0]

    def products(self, inputs: Sequence[Array]) -> list[Array]:
        """Each of some inputs [..., K] times the transposed matrix, in one pass over it, in f32."""
        step = max(1, PIECE // self.shape[-1])

        def multiply(rows: Array) -> Array:
            out = np.empty((len(rows), len(self.rows)), np.float32)

            def part(at: int) -> None:
                out[:, at : at + step] = rows @ self.decoded(self.rows[at : at + step]).T

            with ThreadPoolExecutor() as pool:
                list(pool.map(part, range(0, len(self.rows), step)))
            return out

        return together(inputs, multiply)


def products(inputs: Sequence[Array], weight: Any) -> list[Array]:
    """`linear` of several inputs [..., K] by one weight [N, K]: each in its own precision, but all in f32 where the
    weight is large enough for that to take long."""
    if isinstance(weight, LargeTensor):
        return weight.products(inputs)
    if weight.size >= LONG:
        return together(inputs, lambda rows: np.asarray(rows @ weight.T))
    return [x @ weight.T for x in inputs]


def together(inputs: Sequence[Array], multiply: Callable[[Array], Array]) -> list[Array]:
    """What a function of rows in f32 makes of several inputs, called once; equal inputs are one."""
    rows = [x.reshape(-1, x.shape[-1]).astype(np.float32) for x in inputs]
    first = [next(i for i, other in enumerate(rows) if np.array_equal(other, own)) for own in rows]
    apart = sorted(set(first))
    out = multiply(np.concatenate([rows[i] for i in apart]))
    found = dict(zip(apart, np.split(out, np.cumsum([len(rows[i]) for i in apart])[:-1]), strict=True))
    return [found[i].reshape(*x.shape[:-1], -1).astype(x.dtype) for i, x in zip(first, inputs, strict=True)]


def reader(infos: Mapping[str, TensorInfo], stored: Callable[[str], NDArray[np.uint8]]) -> Callable[[str], Any]:
    """What gives an evaluator its weights."""
    large: dict[str, LargeTensor] = {}

    @lru_cache(maxsize=KEPT)
    def small(name: str) -> Array:
        info = infos[name]
        data = np.ascontiguousarray(stored(name)).reshape(-1)
        width = formats.row_bytes(info.format, info.shape[-1]) if info.shape else data.size
        return formats.decode(info.format, data.reshape(-1, width)).reshape(info.shape)

    def weight(name: str) -> Any:
        info = infos[name]
        if math.prod(info.shape) < LARGE or len(info.shape) < 2:
            return small(name)
        if name not in large:
            width = formats.row_bytes(info.format, info.shape[-1])
            rows = np.ascontiguousarray(stored(name)).reshape(*info.shape[:-1], width)
            large[name] = LargeTensor(rows, info.format, info.shape[-1])
        return large[name]

    return weight
