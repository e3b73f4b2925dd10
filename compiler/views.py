"""Where a value lies: views of buffers as an offset and strides, in elements of the buffer under them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .dims import Dim, evaluate
from .ir import Node
from .plan import is_view


@dataclass(frozen=True)
class View:
    """A strided window on `base`'s memory. Strides are numbers; the offset may depend on T."""

    base: Node
    shape: tuple[Dim, ...]
    strides: tuple[int, ...]
    offset: Dim

    def row_stride(self) -> int:
        """Elements from one row of the last axis to the next.

        Raises NotImplementedError where that differs among rows, or a row does not lie side by side.
        """
        if self.shape and self.shape[-1] != 1 and self.strides[-1] != 1:
            raise NotImplementedError(f"rows of {list(self.shape)} do not lie side by side: {self.strides}")
        leading = [(size, stride) for size, stride in zip(self.shape[:-1], self.strides[:-1], strict=True) if size != 1]
        for (_, outer), (size, inner) in pairwise(leading):
            if outer != size * inner:
                raise NotImplementedError(f"rows of {list(self.shape)} lie unevenly: {self.strides}")
        return leading[-1][1] if leading else 0

    def show(self, memory: NDArray[np.float32], sizes: Mapping[str, int]) -> NDArray[np.float32]:
        """What the view shows of its base's elements."""
        shape = tuple(evaluate(size, sizes) for size in self.shape)
        strides = tuple(stride * memory.itemsize for stride in self.strides)
        return as_strided(memory[evaluate(self.offset, sizes) :], shape, strides)

    @property
    def contiguous(self) -> bool:
        """Whether elements lie in order, without gaps."""
        own = zip(self.shape, self.strides, _contiguous(self.shape), strict=True)
        return all(size == 1 or stride == plain for size, stride, plain in own)


def view_of(item: Node) -> View:
    """The view a chain of reshapes and slices makes. Raises NotImplementedError where it needs a copy."""
    if not is_view(item):
        return View(item, item.shape, _contiguous(item.shape), 0)
    inner = view_of(item.args[0])
    if item.op == "slice":
        axis = item["axis"]
        return View(inner.base, item.shape, inner.strides, inner.offset + item["start"] * inner.strides[axis])
    return View(inner.base, item.shape, _reshaped(inner, item.shape), inner.offset)


def heads_lie_together(view: View) -> bool:
    """Whether each token's heads [H, D] lie in order, wherever the next token's are."""
    _, heads, size = view.shape
    return (size == 1 or view.strides[2] == 1) and (heads == 1 or view.strides[1] == size)


def _contiguous(shape: tuple[Dim, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        inner = shape[axis + 1]
        if not isinstance(inner, int):
            raise NotImplementedError(f"only the first axis of {list(shape)} may have a size known at run time")
        strides[axis] = strides[axis + 1] * inner
    return tuple(strides)


def _reshaped(view: View, shape: tuple[Dim, ...]) -> tuple[int, ...]:
    """Strides for another shape of the same elements in the same order, without moving any."""
    if view.contiguous:
        return _contiguous(shape)
    kept = [(size, stride) for size, stride in zip(view.shape, view.strides, strict=True) if size != 1]
    strides: list[int] = []
    for size in shape:
        if size == 1:
            strides.append(0)
        elif kept and kept[0][0] == size:
            strides.append(kept.pop(0)[1])
        else:
            raise NotImplementedError(f"{list(view.shape)} as {list(shape)} needs a copy")
    return tuple(strides)
