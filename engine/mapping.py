"""What the system is told of mapped files, where it takes advice: nothing that is read depends on it."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def forget(data: NDArray[np.uint8], start: int, length: int) -> None:
    """The whole pages of a part of a file may leave the memory. Reading it again maps them again."""
    mapped = _mapped(data)
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (start + length - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if mapped is not None and whole > 0 and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, first, whole)


def scattered(files: Iterable[NDArray[np.uint8]]) -> None:
    """Small parts of files are read from now on: a page of 2 MB is not worth mapping for a norm."""
    for mapped in {_mapped(data) for data in files} - {None}:
        with contextlib.suppress(OSError, AttributeError):  # systems without large pages
            mapped.madvise(mmap.MADV_NOHUGEPAGE)


def _mapped(data: NDArray[np.uint8]) -> Any:
    """The mapping that a file's bytes are in, if it is one."""
    found = data.base.obj if isinstance(data.base, memoryview) else data.base
    return found if isinstance(found, mmap.mmap) else None
