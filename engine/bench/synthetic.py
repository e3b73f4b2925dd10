"""A model of true shapes with random weights, made as they are asked for: nothing is downloaded or written.

What it costs to run does not depend on the weights, as long as they are ordinary numbers from memory. So a tensor is
a pattern of random blocks again and again. One that is copied when the model is loaded, or that only rows are looked up
in, is no more than that: the same memory shown many times. What the program reads in place is memory of its own.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briolette.backends import formats
from briolette.compiler.header import TensorInfo
from briolette.engine.gguf import GgufFile

from .sizes import Sizes

PATTERN = 8 << 20  # bytes, about: more than rows that are looked up one after the other
SEED = 1


@dataclass(frozen=True)
class Synthetic(GgufFile):
    """As an open file. `in_place` are the tensors that a program reads whole where they lie."""

    values: Mapping[str, Sequence[tuple[int, float]]]
    in_place: frozenset[str]
    made: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # tensors in memory of their own

    def tensor_bytes(self, name: str) -> NDArray[np.uint8]:
        """See `GgufFile.tensor_bytes`."""
        tensor = self.header.tensors[name]
        size = stored_bytes(tensor)
        if name not in self.made and (len(tensor.shape) == 1 or name in self.in_place):
            self.made[name] = self.vector(tensor) if len(tensor.shape) == 1 else np.resize(self.pattern(tensor), size)
        if name in self.made:
            return self.made[name]
        return self.shown[tensor.format][:size]

    def forget(self, name: str) -> None:
        """See `GgufFile.forget`: there is no file to read the pages from again."""

    def scattered(self) -> None:
        """See `GgufFile.scattered`: there is no file that is mapped."""

    def vector(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """A norm or a scale: ones, unless other numbers are known. float32."""
        runs = self.values.get(tensor.name, [(math.prod(tensor.shape), 1.0)])
        return np.concatenate([np.full(count, value, "<f4") for count, value in runs]).view(np.uint8)

    @cached_property
    def shown(self) -> dict[str, NDArray[np.uint8]]:
        """For each format its pattern, as often as its largest tensor wants."""
        matrices = sorted((t for t in self.header.tensors.values() if len(t.shape) > 1), key=stored_bytes)
        largest = {tensor.format: tensor for tensor in matrices}
        return {name: repeated(self.pattern(tensor), stored_bytes(tensor)) for name, tensor in largest.items()}

    def pattern(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """Random blocks of a tensor's format, in whole pages; products with them neither grow nor vanish."""
        return random_blocks(tensor.format, PATTERN, 1 / math.sqrt(tensor.shape[-1]))


def synthetic(model: Sizes, in_place: Collection[str] = ()) -> Synthetic:
    """The model of some sizes; nothing of it is made yet."""
    total = sum(map(stored_bytes, model.header.tensors.values()))
    return Synthetic(Path(model.header.source), model.header, (), total, {}, model.values, frozenset(in_place))


def stored_bytes(tensor: TensorInfo) -> int:
    """Bytes of a tensor in its format."""
    return round(math.prod(tensor.shape) * formats.element_bytes(tensor.format))


def random_blocks(name: str, size: int, deviation: float) -> NDArray[np.uint8]:
    """About `size` bytes, in whole pages, of blocks whose weights have the mean 0 and a standard deviation.

    Integers are any bits; the scale, and the offset where there is one, follow from what these come to.
    """
    fmt, rng = formats.get(name), np.random.default_rng(SEED)
    unit = math.lcm(fmt.bytes, mmap.PAGESIZE)
    count = max(1, size // unit) * unit
    if fmt.quants is None:
        numbers = (rng.standard_normal(count // fmt.bytes, np.float32) * np.float32(deviation)).astype("<f4")
        if name == "bf16":
            return numbers.view(np.uint8).reshape(-1, 4)[:, 2:].reshape(-1)
        return numbers.astype("<f2" if name == "f16" else "<f4").view(np.uint8)
    blocks = rng.integers(0, 256, (count // fmt.bytes, fmt.bytes), dtype=np.uint8)

    def decoded(scale: float, offset: float) -> NDArray[np.float32]:
        for part, value in (("d", scale), (fmt.offsets, offset)):
            if part is not None:
                blocks[:, fmt[part].offset : fmt[part].end] = np.array([value], "<f2").view(np.uint8)
        return formats.decode(fmt, blocks[:4096])

    offset = 0.0
    if fmt.offsets is not None:
        offset = -float(decoded(1.0, 0.0).mean() / decoded(0.0, 1.0).mean())
    scale = deviation / float(decoded(1.0, offset).std())
    decoded(scale, scale * offset)
    return blocks.reshape(-1)


def repeated(pattern: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An array of `size` bytes that is a pattern of whole pages again and again, in the memory of one."""
    step = pattern.nbytes
    assert step % mmap.PAGESIZE == 0
    whole = mmap.mmap(-1, -(-size // step) * step, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shown = np.frombuffer(whole, np.uint8)  # keeps the addresses, which the mappings below take over
    with (
        os.fdopen(os.memfd_create("pattern"), "w+b")
        if hasattr(os, "memfd_create")
        else tempfile.TemporaryFile() as file
    ):
        file.write(pattern.tobytes())
        file.flush()
        for at in range(0, shown.nbytes, step):
            _map(shown.ctypes.data + at, step, file.fileno())
    return shown[:size]


MAP_FIXED = 0x10  # in Linux and macOS


def _map(address: int, size: int, file: int) -> None:
    """Shows a file's first bytes at an address. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    found = libc.mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file, 0)
    if found != address:
        number = ctypes.get_errno()
        raise OSError(number, f"memory cannot be shown twice: {os.strerror(number)}")
