"""The two ceilings of a roofline, measured or given: how fast this machine reads memory, and how fast it multiplies."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from briolette.engine.model import cores

READ_BYTES, SIDE, SECONDS = 1 << 27, 768, 0.2


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

    def seconds(self, flops: float, bytes: float) -> float:
        """The least time that work can take here."""
        return max(flops / self.peak, bytes / self.bandwidth)


def machine(bandwidth: float | None, peak: float | None) -> Machine:
    """Ceilings as given, in GB/s and GFLOP/s; what is not given is measured, which takes a fraction of a second."""
    threads = cores()
    on = f"{threads} thread{'s' if threads > 1 else ''}"
    return Machine(
        _bandwidth(threads) if bandwidth is None else bandwidth * 1e9,
        _peak() if peak is None else peak * 1e9,
        f"measured: numpy reading {READ_BYTES >> 20} MiB on {on}, the best of {SECONDS} s of tries"
        if bandwidth is None
        else "given with --bandwidth",
        f"measured: numpy multiplying float32 matrices of {SIDE} by {SIDE}, the best of {SECONDS} s of tries"
        if peak is None
        else "given with --peak",
    )


def _bandwidth(threads: int) -> float:
    """Bytes a second that all cores read together."""
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / _best(lambda: list(pool.map(lambda part: float(np.dot(part, part)), parts)))


def _peak() -> float:
    """Operations a second of a matrix product that fits into the caches."""
    a = np.ones((SIDE, SIDE), np.float32)
    return 2 * SIDE**3 / _best(lambda: a @ a)


def _best(work: Callable[[], object]) -> float:
    """The least seconds of many tries, after one to warm up: what else runs on the machine only slows some down."""
    work()
    times = [time.perf_counter()]
    while times[-1] - times[0] < SECONDS or len(times) < 3:
        work()
        times.append(time.perf_counter())
    return min(after - before for before, after in itertools.pairwise(times))
