"""Packs weights when they are loaded: native code, on all threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError
from briolette.compiler.tiles import TILE

from .. import formats
from ..base import Weights
from .jit import Library, compile_object
from .packing import Packing, packing
from .record import Stored
from .store import kept, key_of
from .target import Target

CACHE_LINE = 64
STRIPE = 8 << 20  # bytes of a tensor that a thread packs before the file's pages of it are given back
SIGNATURE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3)


def aligned(count: int, dtype: type = np.uint8, align: int = CACHE_LINE) -> NDArray[Any]:
    """Zeroed memory on a cache line; pages are taken from the system as they are written."""
    size = np.dtype(dtype).itemsize * count
    raw = np.zeros(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size].view(dtype)


def whole(weights: Weights, item: Stored) -> NDArray[np.uint8]:
    """A tensor's bytes. Raises BrioletteError where they are not those that programs were made for."""
    found = weights.stored(item.name)
    if found.nbytes != item.file_bytes or not found.flags.c_contiguous:
        wanted = f"{list(item.shape)} {item.format} needs {item.file_bytes}"
        raise BrioletteError(f"tensor {item.name} has {found.nbytes} bytes; {wanted}, in one piece")
    return found


def decoded(weights: Weights, item: Stored) -> NDArray[np.float32]:
    """A tensor as f32, in its shape."""
    rows = whole(weights, item).reshape(item.rows, -1)
    return np.ascontiguousarray(formats.decode(item.format, rows).reshape(item.shape))


def packed_bytes(item: Stored) -> int:
    """What a tensor takes when it is packed."""
    return packing(item.format, item.columns).row_bytes(item.columns) * item.rows


class Packed:
    """The packed weights of a model; each is made once."""

    def __init__(self, weights: Weights, target: Target, threads: int):
        self.weights, self.target, self.threads = weights, target, threads
        self.arrays: dict[str, NDArray[Any]] = {}
        self.libraries: dict[str, Library] = {}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    @contextmanager
    def making(self, weights: Iterable[Stored]) -> Iterator[None]:
        """Packs those weights that are to be packed and are not, while the caller does something else: when that is
        over, all are. Stripes of one tensor, and small tensors, are packed side by side."""
        made: dict[str, NDArray[Any]] = {}
        stripes: list[Callable[[], None]] = []
        for item in weights:
            if item.how == "pack" and item.name not in self.arrays and item.name not in made:
                made[item.name] = aligned(packed_bytes(item))
                stripes += self._stripes(item, made[item.name])
        if not stripes:
            yield
            return
        pool = ThreadPoolExecutor(self.threads)  # ctypes lets go of the interpreter's lock
        try:
            done = pool.map(lambda stripe: stripe(), stripes)
            yield
            list(done)
        finally:
            pool.shutdown(cancel_futures=True)
        self.arrays |= made

    def address_of(self, item: Stored) -> int:
        """Where the packed form of a tensor lies."""
        return int(self.arrays[item.name].ctypes.data)

    def _stripes(self, item: Stored, made: NDArray[Any]) -> Iterator[Callable[[], None]]:
        """What packs a tensor, in parts that threads may share."""
        stored, how = whole(self.weights, item), packing(item.format, item.columns)
        tiles, units = item.rows // TILE, item.columns // how.elements
        function = SIGNATURE(self._library(how).address("pack"))
        addresses = stored.ctypes.data, made.ctypes.data

        def pack(start: int, end: int) -> None:
            function(*addresses, start, end, units)
            self.weights.forget(item.name)  # now, so that a large tensor is never twice in memory

        step = max(1, STRIPE * tiles // max(1, stored.nbytes))
        for start in range(0, tiles, step):
            yield partial(pack, start, min(start + step, tiles))

    def _library(self, how: Packing) -> Library:
        name = f"{how.blocks} {how.format.name}"
        if name not in self.libraries:

            def compile() -> bytes:
                from .pack_ir import pack_module

                return compile_object(pack_module(self.target, how), self.target)

            self.libraries[name] = Library([kept(f"{key_of(self.target, ['pack', name])}.o", compile)], self.target)
        return self.libraries[name]
