"""Whether what a kernel computes depends on the order that its threads run in."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import numpy as np

from .module import Kernel, Triple


class ScheduleDependence(AssertionError):  # noqa: N818
    """Two orders of the same threads gave different bytes: threads race, or atomics add floats."""


def same_on_all_seeds(
    kernel: Kernel,
    grid: Triple,
    block: Triple,
    args: Sequence[int | float],
    outputs: Sequence[tuple[int, int]],
    shared_bytes: int = 0,
    seeds: Iterable[int | None] = (None, *range(8)),
) -> None:
    """Launches a kernel once for each seed, always from the same memory, and compares what it wrote, bit for bit.

    outputs: address and number of bytes of all that the kernel writes. They hold the first seed's results at the end.
    Raises ScheduleDependence, which names the first byte that differs.
    """
    before = [ctypes.string_at(address, size) for address, size in outputs]
    first: list[bytes] = []
    order = list(seeds)
    for seed in order:
        for (address, size), content in zip(outputs, before, strict=True):
            ctypes.memmove(address, content, size)
        kernel.launch(grid, block, args, shared_bytes, seed)
        after = [ctypes.string_at(address, size) for address, size in outputs]
        first = first or after
        for number, (one, other) in enumerate(zip(first, after, strict=True)):
            if one != other:
                differing = np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8))
                raise ScheduleDependence(
                    f"{kernel.name}: output {number} differs between seeds {order[0]} and {seed} in {differing.size} "
                    f"of {len(one)} bytes, first at byte {differing[0]}"
                )
    for (address, size), content in zip(outputs, first, strict=True):
        ctypes.memmove(address, content, size)
