"""Packs weights when they are loaded: native code, all threads, one tensor after the other."""

from __future__ import annotations

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from briolette.compiler.dims import evaluate
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Node
from briolette.compiler.opset.matrices import TILE

from ..base import Weights, stored_bytes
from .build import Target
from .jit import Library, cached_object, compile_object, object_key
from .packing import Packing, emit_pack, packing

CACHE_LINE = 64
STRIPE = 16 << 20  # bytes of a tensor packed before the file's pages of it are given back
SIGNATURE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3)


def aligned(count: int, dtype: type = np.uint8, align: int = CACHE_LINE) -> NDArray[Any]:
    """Zeroed memory on a cache line; pages are taken from the system as they are written."""
    size = np.dtype(dtype).itemsize * count
    raw = np.zeros(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size].view(dtype)


def whole(weights: Weights, item: Node) -> NDArray[np.uint8]:
    """A tensor's bytes. Raises BrioletteError where they are not those of a `weight` node."""
    stored, wanted = weights.stored(item["name"]), stored_bytes(item)
    if stored.nbytes != wanted or not stored.flags.c_contiguous:
        raise BrioletteError(
            f"tensor {item['name']} has {stored.nbytes} bytes; {item.type} needs {wanted}, in one piece"
        )
    return stored


def packed_bytes(item: Node) -> int:
    """What a `weight` node takes when it is packed."""
    *rows, columns = (evaluate(size, {}) for size in item.shape)
    return packing(item.type.dtype, columns).row_bytes(columns) * math.prod(rows)


class Packed:
    """The packed weights of a model; each is made when it is first asked for."""

    def __init__(self, weights: Weights, target: Target, threads: int):
        self.weights, self.target, self.threads = weights, target, threads
        self.arrays: dict[str, NDArray[Any]] = {}
        self.libraries: dict[str, Library] = {}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def address_of(self, item: Node) -> int:
        """Where the packed form of a `weight` node lies."""
        name = item["name"]
        if name not in self.arrays:
            self.arrays[name] = self._pack(item)
        return int(self.arrays[name].ctypes.data)

    def _pack(self, item: Node) -> NDArray[Any]:
        stored = whole(self.weights, item)
        *rows, columns = (evaluate(size, {}) for size in item.shape)
        how = packing(item.type.dtype, columns)
        tiles, units = int(np.prod(rows)) // TILE, columns // how.elements
        made = aligned(packed_bytes(item))
        function = SIGNATURE(self._library(how).address("pack"))
        stripe = max(self.threads, STRIPE * tiles // max(1, stored.nbytes))
        with ThreadPoolExecutor(self.threads) as pool:  # ctypes lets go of the interpreter's lock
            for start in range(0, tiles, stripe):
                count = min(stripe, tiles - start)
                ends = [start + count * part // self.threads for part in range(self.threads + 1)]

                def part(index: int, ends: list[int] = ends) -> None:
                    function(stored.ctypes.data, made.ctypes.data, ends[index], ends[index + 1], units)

                list(pool.map(part, range(self.threads)))
                self.weights.forget(item["name"])  # now, so that a large tensor is never twice in memory
        return made

    def _library(self, how: Packing) -> Library:
        name = f"{how.blocks} {how.format.name}"
        if name not in self.libraries:

            def compile() -> bytes:
                module = ir.Module()
                module.triple = self.target.triple
                emit_pack(module, self.target, "pack", how)
                return compile_object(module, self.target)

            key = object_key(self.target, ["pack", name])
            self.libraries[name] = Library(cached_object(key, compile), self.target)
        return self.libraries[name]
