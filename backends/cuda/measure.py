"""How fast a device is, and where a step's time goes on it: by the device's own clock."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..base import checked
from .device import Device
from .engine import CudaEngine
from .steps import Launch
from .traffic import Use, uses

THREADS, TRIES, EACH = 256, 5, 4
COPIED = 1 << 30  # bytes: far more than caches hold
COPY = """extern "C" __global__ void copy(const float4* from, float4* to) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < %d; i += (long long)gridDim.x * blockDim.x)
    to[i] = from[i];
}
"""


def copy_bandwidth(device: Device, size: int = COPIED, blocks: int = 1 << 14) -> float:
    """Bytes a second that a kernel reads and writes when it copies memory: the best of some tries."""
    kernel = device.module(COPY % (size // 16)).kernel("copy")
    here, there = device.alloc(size), device.alloc(size)

    def copies() -> None:
        for _ in range(EACH):
            device.launch(kernel, (blocks, 1, 1), THREADS, [here, there])

    device.time(copies)
    seconds = min(device.time(copies) for _ in range(TRIES))
    device.free(here)
    device.free(there)
    return 2 * size * EACH / seconds


@dataclass(frozen=True)
class Timed:
    """All launches of one kernel in a decode step: bytes that they move, and seconds that they take."""

    use: Use
    calls: int
    bytes: int
    seconds: float


def kernel_times(engine: CudaEngine, depth: int, tries: int = TRIES) -> list[Timed]:
    """The kernels of a decode step at a position, longest first, each with all of its launches one after another: the
    best of some tries. What the cache holds does not matter. The engine's sequence is overwritten there."""
    loaded = engine.group("decode")
    program = loaded.programs["decode"]
    engine.call(loaded, "decode", checked([1], depth, engine.compilation.token_ids, engine.options))
    grouped: dict[str, list[Use]] = {}
    for use in uses(program.plan, loaded.made.layout, depth):
        grouped.setdefault(use.kernel.name, []).append(use)

    def start(launches: list[Launch]) -> None:
        for launch in launches:
            loaded.start(launch, {"T": 1})

    found = []
    for some in grouped.values():
        run = engine.device.graph(partial(start, [use.launch for use in some]))  # Python would be slower than kernels
        run()
        best = min(engine.device.time(run) for _ in range(tries))
        found.append(Timed(some[0], len(some), sum(use.bytes for use in some), best))
    return sorted(found, key=lambda timed: -timed.seconds)
