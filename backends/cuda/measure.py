"""How fast a device is, and where a step's time goes on it: by the device's own clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ..base import checked
from .device import Device
from .engine import CudaEngine
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

    device.timeline([copies])
    seconds = min(device.timeline([copies] * TRIES))
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
    """The kernels of a decode step at a position, longest first, each with all of its launches: of each launch the best
    of some steps. What the cache holds does not matter; the sequence is overwritten at that position."""
    loaded = engine.group("decode")
    program = loaded.programs["decode"]
    engine.call(loaded, "decode", checked([1], depth, engine.compilation.token_ids, engine.options))
    launches = [partial(loaded.start, launch, {"T": 1}) for launch in program.launches]
    _, *steps = [engine.device.timeline(launches) for _ in range(tries + 1)]
    best = map(min, zip(*steps, strict=True))
    found: dict[str, Timed] = {}
    for use, seconds in zip(uses(program.plan, loaded.made.layout, depth), best, strict=True):
        before = found.get(use.kernel.name, Timed(use, 0, 0, 0.0))
        found[use.kernel.name] = replace(
            before, calls=before.calls + 1, bytes=before.bytes + use.bytes, seconds=before.seconds + seconds
        )
    return sorted(found.values(), key=lambda timed: -timed.seconds)
