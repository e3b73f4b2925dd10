"""Device memory of the emulator: allocations between pages that no kernel may touch."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from . import native
from .errors import EmulatorError


class Memory:
    """Allocations of one owner; those left are freed with it.

    An allocation ends at a guard page and starts after one. It starts out as bytes 0xff: NaN in every float format.
    What alignment leaves over beside it is poisoned likewise, and `check` sees where a kernel wrote there.
    """

    def __init__(self) -> None:
        self._runtime = native.library()
        self._sizes: dict[int, int] = {}
        self._freed: list[int] = []

    def alloc(self, nbytes: int, name: str = "", align: int = 16) -> int:
        """The address of fresh memory, a multiple of `align` (a power of two, in bytes). Reports use the name."""
        if nbytes < 0 or align < 1 or align & (align - 1):
            raise ValueError(f"cannot allocate {nbytes} bytes aligned to {align}")
        title = f"'{name}'" if name else "an allocation"
        address: int = self._runtime.emulator_allocate(nbytes, align, title.encode())
        if not address:
            raise EmulatorError(f"out of memory for {title} of {nbytes} bytes")
        self._sizes[address] = nbytes
        return address

    def view(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes of an allocation, to read and write; it does not keep the allocation alive."""
        self._within(address, nbytes)
        buffer = (ctypes.c_uint8 * nbytes).from_address(address) if nbytes else b""
        return np.frombuffer(buffer, np.uint8)

    def upload(self, values: NDArray[np.generic], name: str = "", align: int = 16) -> int:
        """The address of a copy of an array's bytes, in C order."""
        data = np.ascontiguousarray(values)
        address = self.alloc(data.nbytes, name, align)
        if data.nbytes:
            ctypes.memmove(address, data.ctypes.data, data.nbytes)
        return address

    def download(self, address: int, dtype: np.dtype | type, shape: int | tuple[int, ...]) -> NDArray[np.generic]:
        """A copy of memory as an array."""
        form = np.dtype(dtype)
        count = int(np.prod(shape))
        return self.view(address, count * form.itemsize).view(form).reshape(shape).copy()

    def free(self, address: int) -> None:
        """Ends an allocation: later use of it is reported. Raises where something was written beside it."""
        if address not in self._sizes:
            raise ValueError(f"0x{address:x} is not the address of an allocation")
        try:
            self._check(address)
        finally:
            del self._sizes[address]
            self._freed.append(address)
            self._runtime.emulator_free(address, 1)

    def check(self) -> None:
        """Raises EmulatorError where something was written beside an allocation, in its own pages."""
        for address in self._sizes:
            self._check(address)

    def _check(self, address: int) -> None:
        wrong = self._runtime.emulator_check(address)
        if wrong:
            size = self._sizes[address]
            raise EmulatorError(
                f"out of bounds: something wrote {wrong - address} bytes from the start of an allocation of {size}"
            )

    def _within(self, address: int, nbytes: int) -> None:
        if self._sizes.get(address, -1) >= nbytes:
            return
        for start, size in self._sizes.items():
            if start <= address and address + nbytes <= start + size:
                return
        raise ValueError(f"{nbytes} bytes at 0x{address:x} are not inside one allocation")

    def close(self) -> None:
        """Frees all that is left, and gives addresses of freed allocations back."""
        for address in [*self._sizes, *self._freed]:
            self._runtime.emulator_free(address, 0)
        self._sizes.clear()
        self._freed.clear()

    def __del__(self) -> None:
        if hasattr(self, "_freed"):
            self.close()
