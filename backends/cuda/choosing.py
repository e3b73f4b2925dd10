"""Choosing tokens on the device, so that a token's id comes back and not its logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..base import Choice
from .source import Kernel

if TYPE_CHECKING:
    from .device import U8

THREADS = 1024
MOST_RECENT = 1024  # tokens that a penalty can be for
WISH_BYTES = 4 * (7 + MOST_RECENT)


def sample_kernel(vocabulary: int) -> Kernel:
    """The kernel that chooses from logits as a wish says: `sample` of `kernels/sample.cuh`."""
    parameters = ("float* logits", "const Wish* wish", "int* token")
    body = f"__shared__ SampleShared own;\nsample<{vocabulary}>(logits, wish, token, own);"
    return Kernel("sample", parameters, body, THREADS)


def can_choose(choice: Choice) -> bool:
    """Whether the kernel can: a penalty must not be for too many tokens."""
    return len(choice.recent) <= MOST_RECENT


def wish(choice: Choice) -> U8:
    """A choice as the kernel reads it."""
    least = math.log(choice.min_p) if choice.min_p > 0 else -math.inf
    numbers = (choice.temperature, choice.top_p, least, choice.penalty, choice.random)
    counts: NDArray[np.int32] = np.array([choice.top_k, len(choice.recent), *choice.recent], np.int32)
    return np.concatenate([np.array(numbers, np.float32).view(np.uint8), counts.view(np.uint8)])
