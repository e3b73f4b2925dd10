"""A GPU through CuPy. Nothing else in the backend touches it, and no test machine has one: see docs/cuda.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from briolette.compiler.errors import BrioletteError

from .device import U8, Grid

LEAST = 80  # compute capability, times ten: integer products, 16-bit tensor cores, asynchronous copies
OPTIONS = ("-std=c++17",)
# Some 30 ms.
SPIN = """extern "C" __global__ void spin() {
  const long long begin = clock64();
  while (clock64() - begin < 50000000LL) {
  }
}
"""


class CupyModule:
    """Kernels of a module that the driver has loaded."""

    def __init__(self, module: Any):
        self.module = module

    def kernel(self, name: str) -> Any:
        """See `device.Module.kernel`."""
        return self.module.get_function(name)


class CupyDevice:
    """The current GPU of CUDA, and a stream of the engine's own."""

    def __init__(self) -> None:
        self.cupy = checked_cupy()
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        self.name = properties["name"].decode()
        self.compilers = os.cpu_count() or 1
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.held: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}

    def alloc(self, size: int) -> int:
        """See `device.Device.alloc`."""
        try:
            memory = self.cupy.cuda.alloc(size)
        except self.cupy.cuda.memory.OutOfMemoryError:
            raise BrioletteError(
                f"the GPU ({self.name}) has no room for {size / 1e6:.0f} MB more, {self.room() / 1e6:.0f} MB are free: "
                "take a smaller context (--ctx), a compressed cache (--kv balanced) or a smaller model"
            ) from None
        self.held[memory.ptr] = memory
        return int(memory.ptr)

    def free(self, address: int) -> None:
        """See `device.Device.free`."""
        self.stream.synchronize()
        self.pinned.pop(address, None)  # what comes to lie there may be larger
        self.held.pop(address)

    def write(self, address: int, data: U8) -> None:
        """See `device.Device.write`. Small data go through page-locked memory, so that nobody waits for the copy."""
        runtime = self.cupy.cuda.runtime
        if address not in self.held or data.nbytes > 1 << 20:
            kind = runtime.memcpyHostToDevice
            self.stream.synchronize()
            runtime.memcpy(address, data.ctypes.data, data.nbytes, kind)
            return
        if address in self.pinned:
            memory, event = self.pinned[address]
            event.synchronize()  # what was written before has left the host's memory
        else:
            memory = self.cupy.cuda.alloc_pinned_memory(max(data.nbytes, self.held[address].mem.size))
        np.frombuffer(memory, np.uint8, data.nbytes)[:] = data
        runtime.memcpyAsync(address, memory.ptr, data.nbytes, runtime.memcpyHostToDevice, self.stream.ptr)
        self.pinned[address] = memory, self.stream.record()

    def read(self, address: int, size: int) -> U8:
        """See `device.Device.read`."""
        found = np.empty(size, np.uint8)
        runtime = self.cupy.cuda.runtime
        runtime.memcpyAsync(found.ctypes.data, address, size, runtime.memcpyDeviceToHost, self.stream.ptr)
        self.stream.synchronize()
        return found

    def module(self, source: str) -> CupyModule:
        """See `device.Device.module`."""
        module = self.cupy.RawModule(code=source, options=OPTIONS)
        try:
            module.compile()
        except self.cupy.cuda.compiler.CompileException as error:
            raise BrioletteError(f"the CUDA compiler refuses the kernels: {error}") from None
        except (RuntimeError, OSError) as error:  # CuPy's own errors where NVRTC or the headers are not there
            raise BrioletteError(
                f"the CUDA compiler (NVRTC) cannot be used: {error}; pip install 'briolette[cuda]' brings it"
            ) from None
        return CupyModule(module)

    def launch(self, kernel: Any, grid: Grid, threads: int, arguments: Sequence[int], shared: int = 0) -> None:
        """See `device.Device.launch`."""
        if shared > kernel.max_dynamic_shared_size_bytes:
            kernel.max_dynamic_shared_size_bytes = shared  # more than 48 KB must be asked for
        with self.stream:
            kernel(grid, (threads, 1, 1), tuple(np.uint64(address) for address in arguments), shared_mem=shared)

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `device.Device.graph`."""
        self.stream.synchronize()
        with self.stream:
            self.stream.begin_capture()
            work()
            graph = self.stream.end_capture()
        return lambda: graph.launch(stream=self.stream)

    def timeline(self, works: Sequence[Callable[[], None]]) -> list[float]:
        """See `device.Device.timeline`. The device is kept busy until the host has asked for enough: launches from
        Python take longer than small kernels."""
        cuda = self.cupy.cuda
        spin = self.module(SPIN).kernel("spin")
        events = [cuda.Event() for _ in range(len(works) + 1)]
        self.launch(spin, (1, 1, 1), 1, ())
        events[0].record(self.stream)
        for work, event in zip(works, events[1:], strict=True):
            work()
            event.record(self.stream)
        events[-1].synchronize()
        return [float(cuda.get_elapsed_time(*pair)) / 1e3 for pair in pairwise(events)]

    def room(self) -> int:
        """See `device.Device.room`."""
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        return int(free) + int(self.cupy.get_default_memory_pool().free_bytes())


def checked_cupy() -> Any:
    """CuPy, with a GPU that kernels run on. Raises BrioletteError that says what is missing and what to do."""
    try:
        import cupy
    except ImportError:
        raise BrioletteError(
            "the CUDA backend needs CuPy: pip install 'briolette[cuda]' (CUDA 13) or 'briolette[cuda12]' (CUDA 12)"
        ) from None
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise BrioletteError(f"no usable NVIDIA driver ({error}): install one, or take --backend cpu") from None
    if count == 0:
        raise BrioletteError("CUDA finds no GPU (CUDA_VISIBLE_DEVICES hides some?): take --backend cpu")
    device = cupy.cuda.Device()
    if int(device.compute_capability) < LEAST:
        name, found = runtime.getDeviceProperties(device.id)["name"].decode(), int(device.compute_capability) / 10
        raise BrioletteError(
            f"the GPU ({name}) has compute capability {found}, and "
            f"kernels need {LEAST / 10} (Ampere) or newer: take --backend cpu"
        )
    return cupy
