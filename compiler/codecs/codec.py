"""Codecs: how a cache keeps a head's vector, as small codes and a scale for each block of values.

| name | scale for | code's value, before the scale | the scale, float16 |
|---|---|---|---|
| `tq2 tq3 tq4 tq5 tq6 tq8` | the whole head | Lloyd-Max for a random direction | length over the decoded length |
| `tq4_128`, ... | 128 values (any power of two from 32) | the same, for directions in 128 dimensions | the same |
| `tq4_eden`, `tq4_128_eden`, ... | as above | the same | makes inner products unbiased |
| `q8_0`, `q4_0` | 32 values | a whole number | as GGUF: largest value / 127, or / -8 |

A codec knows nothing of rotation, see `rotation`. Codes and scales are separate arrays; how memory keeps them is a
backend's matter.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..errors import BrioletteError
from . import absmax
from .lloyd_max import levels

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]

TQ_BITS = (2, 3, 4, 5, 6, 8)
LEAST_BLOCK = 32
SCALE_BYTES = 2
_TQ = re.compile(r"tq([234568])(?:_([1-9]\d*))?(_eden)?")
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


@dataclass(frozen=True)
class Codec:
    """How a vector is kept. Get one by name: `codec_named`."""

    name: str
    bits: int  # of a code
    block: int | None  # values that share a scale; None: the whole head
    fit: str  # how a scale is found: "norm", "eden" or "absmax"

    def planes(self) -> tuple[int, ...]:
        """The widths of the bit planes that a code is cut into, high bits first."""
        return _PLANES[self.bits]

    def width(self, size: int) -> int:
        """How many values of a head of `size` share a scale. Raises BrioletteError where blocks do not divide it."""
        width = size if self.block is None else min(self.block, size)
        if size < 2 or size % width:
            raise BrioletteError(f"{self.name} keeps blocks of {width} values, which do not divide a head of {size}")
        return width

    @property
    def signed(self) -> bool:
        """Whether scales may be negative: that of 4 bits by the largest magnitude has the sign of that value."""
        return self.fit == "absmax" and self.bits == 4

    def table(self, size: int) -> F32:
        """What each code stands for before the scale, rising, float32 [2**bits], for heads of `size`. Read-only."""
        return _table(self.fit == "absmax", self.bits, self.width(size))

    def thresholds(self, size: int) -> F32:
        """Half-way between the table's neighbours, float32 [2**bits - 1]. Read-only.

        The code of a scaled value is the number of thresholds below it. (q8_0 and q4_0 break ties as GGUF does.)
        """
        return _thresholds(self.fit == "absmax", self.bits, self.width(size))

    def head_bytes(self, size: int) -> int:
        """The bytes of a head of `size`: codes and scales."""
        return (size * self.bits + 7) // 8 + SCALE_BYTES * (size // self.width(size))


@cache
def codec_named(name: str) -> Codec:
    """The codec of a name. Raises BrioletteError that says which there are."""
    if name in absmax.FORMATS:
        return Codec(name, absmax.FORMATS[name].bits, absmax.BLOCK, "absmax")
    match = _TQ.fullmatch(name)
    block = int(match[2]) if match and match[2] else None
    if match is None or (block is not None and (block < LEAST_BLOCK or block & (block - 1))):
        raise BrioletteError(
            f"there is no codec `{name}`; there are {', '.join(f'tq{bits}' for bits in TQ_BITS)}, each with `_128` "
            f"(a scale for 128 values: any power of two from {LEAST_BLOCK}) or `_eden` or both behind it, "
            f"and {' and '.join(absmax.FORMATS)}"
        )
    return Codec(name, int(match[1]), block, "eden" if match[3] else "norm")


def is_codec(name: str) -> bool:
    """Whether `codec_named` knows the name."""
    try:
        codec_named(name)
    except BrioletteError:
        return False
    return True


def encode(codec: Codec, x: F32) -> tuple[U8, F16]:
    """Codes, uint8 [..., D], and scales, float16 [..., D / block], of float32 [..., D].

    A zero block has the scale 0. A scale that float16 cannot hold is infinite (blocks whose mean square is above
    65504^2). Raises BrioletteError where the codec's blocks do not divide D.
    """
    size = x.shape[-1]
    width = codec.width(size)
    blocks = np.asarray(x, dtype=np.float32).reshape(*x.shape[:-1], size // width, width)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite stays so, in the scale
        if codec.fit == "absmax":
            codes, scales = absmax.FORMATS[codec.name].quantise(blocks)
        else:
            codes, scales = _encode_direction(codec, blocks)
        return codes.reshape(x.shape), scales.astype(np.float16)


def decode(codec: Codec, codes: U8, scales: F16) -> F32:
    """The vectors that codes [..., D] and scales [..., D / block] stand for, float32 [..., D]."""
    values = codec.table(codes.shape[-1])[codes]
    with np.errstate(invalid="ignore"):
        scaled = values.reshape(*scales.shape, -1) * scales.astype(np.float32)[..., None]
    return scaled.reshape(codes.shape)


def _encode_direction(codec: Codec, blocks: F32) -> tuple[U8, F32]:
    """Codes of the direction of blocks [..., n], scaled to the length sqrt(n), and the scales [...]."""
    width = blocks.shape[-1]
    length = np.sqrt(_dot(blocks, blocks))
    factor = np.divide(math.sqrt(width), length, out=np.zeros_like(length), where=length != 0).astype(np.float32)
    scaled = blocks * factor[..., None]
    codes = np.searchsorted(codec.thresholds(width), scaled, side="left").astype(np.uint8)
    decoded = codec.table(width)[codes]
    if codec.fit == "norm":
        scales = length / np.sqrt(_dot(decoded, decoded))
    else:
        scales = np.divide(length**2, _dot(blocks, decoded), out=np.zeros_like(length), where=length != 0)
    return codes, scales.astype(np.float32)


def _dot(left: F32, right: F32) -> NDArray[np.float64]:
    """Inner products along the last axis, in float64: no engine's order of summing is the right one."""
    products: NDArray[np.float64] = np.einsum("...i,...i->...", left, right, dtype=np.float64)
    return products


@cache
def _table(whole: bool, bits: int, width: int) -> F32:
    if whole:
        values = np.arange(2**bits, dtype=np.float32) - np.float32(2 ** (bits - 1))
    else:
        values = levels(bits, width).astype(np.float32)
    values.flags.writeable = False
    return values


@cache
def _thresholds(whole: bool, bits: int, width: int) -> F32:
    table = _table(whole, bits, width)
    values = (table[1:] + table[:-1]) / np.float32(2)
    values.flags.writeable = False
    return values
