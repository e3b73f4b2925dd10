"""Kernel families of the CPU backend, one file each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from briolette.backends.cpu.build import F32, Build, Value


@dataclass(frozen=True)
class Place:
    """Which row of an operand belongs to row r of a result: row r / repeat % period, where there is a period.

    `stride`: floats from one row of the operand to the next.
    """

    stride: int = 0
    repeat: int = 1
    period: int = 0

    def offset(self, b: Build, row: Value) -> Value:
        """Bytes from the operand's first row."""
        if self.repeat > 1:
            row = b.ir.udiv(row, b.i64(self.repeat))
        if self.period:
            row = b.ir.urem(row, b.i64(self.period))
        return b.mul(row, 4 * self.stride)


ALIKE = Place()  # every row reads the same


def split(b: Build, rows: Value, tid: Value, threads: Value) -> tuple[Value, Value]:
    """Thread `tid`'s share of `rows` (all i64), first to last (exclusive): shares differ by at most one."""
    first = b.ir.udiv(b.mul(rows, tid), threads)
    return first, b.ir.udiv(b.mul(rows, b.add(tid, 1)), threads)


def smaller(b: Build, x: Value, y: Value) -> Value:
    """Of two signed integers, scalars or vectors."""
    return b.ir.select(b.ir.icmp_signed("<", x, y), x, y)


def larger(b: Build, x: Value, y: Value) -> Value:
    return b.ir.select(b.ir.icmp_signed(">", x, y), x, y)


def quotient_up(b: Build, x: Value, y: Value) -> Value:
    return b.ir.udiv(b.sub(b.add(x, y), 1), y)


def place_in_ring(b: Build, position: Value, capacity: Value, sink: int) -> Value:
    """Where a plane keeps a position (all i64): the first `sink` of them stay, the others go round behind those."""
    if sink == 0:
        return b.ir.urem(position, capacity)
    round_ = b.add(b.ir.urem(b.sub(position, sink), b.sub(capacity, sink)), sink)
    return b.ir.select(b.ir.icmp_signed("<", position, b.i64(sink)), position, round_)


def emit_cache_store(b: Build, dtype: str, value: Value, ptr: Value, offset: int | Value = 0) -> None:
    """Store an f32 scalar or vector as a cache of `dtype` keeps it (`briolette.compiler.ops.rounded`)."""
    if dtype != "f32":
        value = b.to_f16_bits(value) if dtype == "f16" else b.to_bf16_bits(value)
    b.store(value, ptr, offset)


def constants(module: ir.Module, name: str, values: Sequence[float]) -> Value:
    """f32 constants under a name of our own: `Build.table` would name them by all their values."""
    array = ir.ArrayType(F32, len(values))
    made = ir.GlobalVariable(module, array, name)
    made.initializer = ir.Constant(array, [float(v) for v in values])
    made.global_constant, made.linkage, made.align = True, "private", 64
    return made
