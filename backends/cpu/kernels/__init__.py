"""Kernel families of the CPU backend, one file each."""

from __future__ import annotations

from briolette.backends.cpu.build import Build, Value


def split(b: Build, rows: Value, tid: Value, threads: Value) -> tuple[Value, Value]:
    """Thread `tid`'s share of `rows` (all i64), first to last (exclusive): shares differ by at most one."""
    first = b.ir.udiv(b.mul(rows, tid), threads)
    return first, b.ir.udiv(b.mul(rows, b.add(tid, 1)), threads)
