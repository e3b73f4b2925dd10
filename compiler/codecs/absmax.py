"""q8_0 and q4_0, bit for bit as GGUF's reference quantises them: a scale from the largest value of 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
BLOCK = 32


class Format(NamedTuple):
    """Bits of a code, and what makes codes uint8 [..., 32] and scales float32 [...] of float32 [..., 32]."""

    bits: int
    quantise: Callable[[F32], tuple[NDArray[np.uint8], F32]]


def _q8_0(blocks: F32) -> tuple[NDArray[np.uint8], F32]:
    """Whole numbers from -127 to 127, halves away from zero, stored with 128 added."""
    scale = np.abs(blocks).max(axis=-1) / np.float32(127)
    scaled = blocks * _reciprocal(scale)[..., None]
    whole = np.trunc(scaled)
    away = whole + np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), np.float32(0))
    return (away + np.float32(128)).astype(np.uint8), scale


def _q4_0(blocks: F32) -> tuple[NDArray[np.uint8], F32]:
    """The largest value, with its sign, is -8 scales: the code 0. Code c stands for c - 8."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    scale = largest / np.float32(-8)
    shifted = blocks * _reciprocal(scale)[..., None] + np.float32(8.5)
    return np.clip(np.trunc(shifted), 0, 15).astype(np.uint8), scale


def _reciprocal(scale: F32) -> F32:
    """1 / scale, and 0 for 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


FORMATS = {"q8_0": Format(8, _q8_0), "q4_0": Format(4, _q4_0)}
