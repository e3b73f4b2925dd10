"""The device that tests bring: kernels run by the emulator, in memory between guard pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import emulator

from briolette.backends.cuda.device import U8, Grid

ALIGN = 256


class EmulatedDevice:
    """seed: the order of threads (None: their natural one). sanitize: see `emulator.Module`."""

    name = "emulated"
    compilers = 1

    def __init__(self, seed: int | None = None, sanitize: str | None = None, workers: int = 1):
        self.seed, self.sanitize, self.workers = seed, sanitize, workers
        self.memory = emulator.Memory()

    def alloc(self, size: int) -> int:
        """See `device.Device.alloc`; what was not written reads as NaN."""
        return self.memory.alloc(size, align=ALIGN)

    def free(self, address: int) -> None:
        self.memory.free(address)

    def write(self, address: int, data: U8) -> None:
        self.memory.view(address, data.nbytes)[:] = data

    def read(self, address: int, size: int) -> U8:
        return self.memory.view(address, size).copy()

    def module(self, source: str) -> emulator.Module:
        return emulator.Module(source, self.sanitize)

    def launch(self, kernel: Any, grid: Grid, threads: int, arguments: Sequence[int], shared: int = 0) -> None:
        kernel.launch(grid, (threads, 1, 1), arguments, shared, seed=self.seed, workers=self.workers)

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """Asks for the same launches again, with the addresses of the first time."""
        recorded: list[tuple[Any, Grid, int, list[int], int]] = []
        launch = self.launch

        def record(kernel: Any, grid: Grid, threads: int, arguments: Sequence[int], shared: int = 0) -> None:
            recorded.append((kernel, grid, threads, list(arguments), shared))

        self.launch = record  # type: ignore[method-assign]
        try:
            work()
        finally:
            self.launch = launch  # type: ignore[method-assign]

        def replay() -> None:
            for call in recorded:
                launch(*call)

        return replay

    def timeline(self, works: Sequence[Callable[[], None]]) -> list[float]:
        """The host's time, which says nothing of a GPU's."""
        stamps = [time.perf_counter()]
        for work in works:
            work()
            stamps.append(time.perf_counter())
        return [end - begin for begin, end in pairwise(stamps)]

    def room(self) -> int:
        return 1 << 34
