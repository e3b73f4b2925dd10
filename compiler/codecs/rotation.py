"""The rotation before a codec: random signs, then the Walsh-Hadamard transform.

It makes any vector's coordinates look like those of a random direction, which is what codebooks are made for. Lengths
and inner products do not change, so a query that is rotated the same way has the same scores.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import BrioletteError

Float = TypeVar("Float", bound=np.floating[Any])


@cache
def signs(size: int) -> NDArray[np.float32]:
    """+1 or -1 for each of `size` dimensions, float32 [size]; the first of a longer list are those of a shorter one.

    The sign of dimension i is the top bit of the 64-bit integer z (1: minus), the output i of SplitMix64 from seed 0:

        z = (i + 1) * 0x9E3779B97F4A7C15
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
        z = (z ^ z >> 27) * 0x94D049BB133111EB
        z = z ^ z >> 31

    All engines use these, and they stay for ever: stored caches depend on them. The array is read-only.
    """
    negative = splitmix64(size) >> np.uint64(63)
    found = np.where(negative == 1, np.float32(-1), np.float32(1))
    found.flags.writeable = False
    return found


def splitmix64(count: int) -> NDArray[np.uint64]:
    """The first outputs of SplitMix64 from seed 0, uint64 [count]."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def hadamard(x: NDArray[Float], block: int | None = None, inverse: bool = False) -> NDArray[Float]:
    """The last axis times `signs`, then the orthonormal Walsh-Hadamard transform of it, whole or of each block.

    x is float [..., D], and so is the result, of x's dtype. The signs go by the place in the whole axis. `inverse`
    undoes it. Raises BrioletteError where a block (by default D) is no power of two or does not divide D.
    """
    size = x.shape[-1]
    width = size if block is None else block
    check_rotation(size, block)
    sign = signs(size).astype(x.dtype)
    values = (x if inverse else x * sign).reshape(-1, width)
    half = 1
    while half < width:
        pairs = values.reshape(-1, width // (2 * half), 2, half)
        values = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    values = values.reshape(x.shape) * x.dtype.type(1 / math.sqrt(width))
    return values * sign if inverse else values


def check_rotation(size: int, block: int | None = None) -> None:
    """Raises BrioletteError where heads of `size` dimensions cannot be rotated, whole or in blocks."""
    width = size if block is None else block
    if width < 1 or width & (width - 1):
        raise BrioletteError(
            f"a Walsh-Hadamard rotation needs a power of two, and {width} is none: "
            "use a codec without rotation, or blocks of a power of two that divides the head's size"
        )
    if size % width:
        raise BrioletteError(
            f"a head of {size} dimensions cannot be rotated in blocks of {width}, which do not divide it"
        )
