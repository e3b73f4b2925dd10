"""What the engine asks of a device: a GPU through CuPy, or an emulation of one that tests bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
Grid = tuple[int, int, int]


class Module(Protocol):
    """Compiled kernels."""

    def kernel(self, name: str) -> Any:
        """A kernel, to be given to `Device.launch`."""
        ...


class Device(Protocol):
    """Memory and kernels. Addresses are 64-bit numbers; work is done in the order in which it is asked for."""

    name: str
    compilers: int  # modules that are worth compiling at once, by threads

    def alloc(self, size: int) -> int:
        """The address of so many bytes, aligned to 256. Raises BrioletteError where there is no room."""
        ...

    def free(self, address: int) -> None: ...

    def write(self, address: int, data: U8) -> None:
        """Copies uint8[n] to the device; the data may be changed when it returns."""
        ...

    def read(self, address: int, size: int) -> U8:
        """uint8[size], when all work that was asked for before is done."""
        ...

    def module(self, source: str) -> Module:
        """Compiles C++. Raises BrioletteError with the compiler's words."""
        ...

    def launch(self, kernel: Any, grid: Grid, threads: int, arguments: Sequence[int], shared: int = 0) -> None:
        """Calls a kernel with addresses, and so many bytes of shared memory beside what it declares."""
        ...

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` launches as one thing that can be asked for again and again: a function that does so."""
        ...

    def timeline(self, works: Sequence[Callable[[], None]]) -> list[float]:
        """Seconds that the device takes for what each of some functions launches, by its own clock: one after another,
        without waiting for the host in between."""
        ...

    def room(self) -> int:
        """Bytes that can be allocated."""
        ...


def open_device() -> Device:
    """The GPU. Raises BrioletteError that says what is missing where there is none."""
    from .cupy_device import CupyDevice

    return CupyDevice()
