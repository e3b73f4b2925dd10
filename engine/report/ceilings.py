"""The two ceilings of a roofline, measured or given: how fast this machine reads memory, and how fast it multiplies."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from briolette.engine.model import cores

READ_BYTES, SIDE = 1 << 28, 768  # more than the caches of most machines hold, and less than those of a core
ROUNDS, SECONDS = 3, 0.1  # of tries of each; spread, so that what else runs now and then spoils fewer of them


@dataclass(frozen=True)
class Machine:
    """Bytes and operations a second, and where each number is from, for people."""

    bandwidth: float
    peak: float
    bandwidth_from: str
    peak_from: str

    @property
    def ridge(self) -> float:
        """The intensity, in operations a byte, from which on memory is not what limits."""
        return self.peak / self.bandwidth

    @property
    def measured(self) -> bool:
        """Whether any of them was measured here."""
        return any(source.startswith("measured") for source in (self.bandwidth_from, self.peak_from))

    def seconds(self, flops: float, bytes: float) -> float:
        """The least time that work can take here."""
        return max(flops / self.peak, bytes / self.bandwidth)


def machine(bandwidth: float | None, peak: float | None) -> Machine:
    """Ceilings as given, in GB/s and GFLOP/s; what is not given is measured, which takes about a second."""
    threads = cores()
    on = f"{threads} thread{'s' if threads > 1 else ''}"
    tries = f"the best of {ROUNDS} times {SECONDS} s of tries"
    with ThreadPoolExecutor(threads) as pool:
        read = _reading(pool, threads) if bandwidth is None else None
        multiply = _multiplying() if peak is None else None
        seconds = [(_best(read) if read else 0.0, _best(multiply) if multiply else 0.0) for _ in range(ROUNDS)]
    reading, multiplying = (min(times) for times in zip(*seconds, strict=True))
    return Machine(
        READ_BYTES / reading if bandwidth is None else bandwidth * 1e9,
        2 * SIDE**3 / multiplying if peak is None else peak * 1e9,
        f"measured: numpy reading {READ_BYTES >> 20} MiB on {on}, {tries}"
        if bandwidth is None
        else "given with --bandwidth",
        f"measured: numpy multiplying float32 matrices of {SIDE} by {SIDE}, {tries}"
        if peak is None
        else "given with --peak",
    )


def _reading(pool: ThreadPoolExecutor, threads: int) -> Callable[[], object]:
    """Reads READ_BYTES on all cores together."""
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    return lambda: list(pool.map(lambda part: float(np.dot(part, part)), parts))


def _multiplying() -> Callable[[], object]:
    """A matrix product that fits into the caches: 2 SIDE^3 operations."""
    a = np.ones((SIDE, SIDE), np.float32)
    return lambda: a @ a


def _best(work: Callable[[], object]) -> float:
    """The least seconds of some tries, after one to warm up: what else runs on the machine only slows some down."""
    work()
    times = [time.perf_counter()]
    while times[-1] - times[0] < SECONDS or len(times) < 3:
        work()
        times.append(time.perf_counter())
    return min(after - before for before, after in itertools.pairwise(times))
