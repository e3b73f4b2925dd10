"""The two ceilings of a roofline, measured or given: how fast this machine reads memory, and how fast it multiplies."""

from __future__ import annotations

from dataclasses import dataclass

from briolette.backends.cpu import ceilings
from briolette.engine.model import cores
from briolette.engine.words import many, size

ROUNDS = 2  # apart from each other, so that what else runs now and then spoils one of them


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
    on = f"on {many(threads, 'thread')}, the best of {ROUNDS * ceilings.TRIES} tries"
    read, multiplied = 0.0, 0.0
    if bandwidth is None or peak is None:
        rounds = [ceilings.measure(threads) for _ in range(ROUNDS)]
        read, multiplied = (max(getattr(found, what) for found in rounds) for what in ("read", "floats"))
    return Machine(
        read if bandwidth is None else bandwidth * 1e9,
        2 * multiplied if peak is None else peak * 1e9,
        f"measured: native code reading {size(ceilings.memory_size())} {on}"
        if bandwidth is None
        else "given with --bandwidth",
        f"measured: float32 multiply-adds in the nearest cache, {on}" if peak is None else "given with --peak",
    )
