"""The device that tests bring: kernels run by the emulator, in memory between guard pages."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import emulator
from emulator import build
from emulator.source import compile_flags

from briolette.backends.cuda.device import U8, Grid
from briolette.backends.cuda.source import library

ALIGN = 256
KERNEL = re.compile(r'^extern "C" __global__ void __launch_bounds__\([^)]*\) (\w+)\(.*?^\}\n', re.MULTILINE | re.DOTALL)


class Kernels:
    """A source's kernels by name. Those that any source has brought before, with the same library, are not compiled
    again: names tell contents apart, and models share most of their kernels."""

    def __init__(self, source: str, sanitize: str | None):
        self.modules: dict[str, emulator.Module] = {}
        of = build.key(library(), build.header_texts(), *compile_flags(sanitize))
        texts = {made[1]: made[0] for made in KERNEL.finditer(source)}
        places = {name: build.folder() / f"{of}.{name}" for name in texts}
        for name, place in places.items():
            if place.exists():
                self.modules[name] = _loaded(build.folder() / place.read_text(), sanitize)
        missing = [name for name in texts if name not in self.modules]
        if not missing:
            return
        before = source[: KERNEL.search(source).start()]
        made = emulator.Module(before + "".join(texts[name] for name in missing), sanitize)
        for name in missing:
            self.modules[name] = made
            scratch = build.folder() / f"{of}.{name}.{os.getpid()}"
            scratch.write_text(made.path.name)
            scratch.replace(places[name])  # another process may read it

    def kernel(self, name: str) -> emulator.Kernel:
        return self.modules[name].kernel(name)


@cache
def _loaded(path: Path, sanitize: str | None) -> emulator.Module:
    return emulator.Module.compiled(path, sanitize)


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

    def module(self, source: str) -> Kernels | emulator.Module:
        kind = Kernels if source.startswith(library()) else emulator.Module
        return kind(source, self.sanitize)

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
