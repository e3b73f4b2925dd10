"""Rows turned by random signs and a Walsh-Hadamard transform (`briolette.compiler.codecs.rotation`).

As many vectors as there are registers go through all steps between them at once; steps that are wider than that go
over the row in memory.
"""

from __future__ import annotations

import math

from llvmlite import ir

from briolette.compiler.codecs import signs

from ..build import F32, Build, Target, Value
from . import constants
from .small import by_rows

REGISTERS = 32  # vectors that are worked on at once


def emit_hadamard(module: ir.Module, target: Target, name: str, size: int, block: int, inverse: bool) -> ir.Function:
    """`void name(ptr x, ptr out, i64 rows, tid, threads)`: f32 [rows, size], every `block` values of a row turned."""
    factors = constants(module, f".{name}.signs", signs(size) / math.sqrt(block))

    def row(b: Build, r: Value, x: Value, out: Value) -> None:
        source, to = b.at(x, b.mul(r, 4 * size)), b.at(out, b.mul(r, 4 * size))
        lanes = min(b.lanes, block)
        part = min(block, lanes * REGISTERS)

        def parts(first: Value, _: list[Value]) -> None:
            places = [b.mul(b.add(first, lanes * i), 4) for i in range(part // lanes)]
            vectors = [b.load(source, b.vec(F32, lanes), place, align=4) for place in places]
            if not inverse:
                vectors = _times(b, vectors, factors, places)
            vectors = [_within(b, v) for v in vectors]
            vectors = _between(b, vectors)
            if inverse and part == block:
                vectors = _times(b, vectors, factors, places)
            for v, place in zip(vectors, places, strict=True):
                b.store(v, to, place, align=4)

        b.loop(0, size, part, [], parts)
        if part < block:
            _wider(b, to, size, block, part)
            if inverse:
                _scale(b, to, size, factors)

    return by_rows(module, target, name, "x out", row)


def _times(b: Build, vectors: list[Value], factors: Value, places: list[Value]) -> list[Value]:
    return [b.mul(v, b.load(factors, v.type, place, align=4)) for v, place in zip(vectors, places, strict=True)]


def _within(b: Build, vector: Value) -> Value:
    """All steps among the lanes of a vector: to each lane its partner is added, or it is taken from its partner."""
    lanes, step = vector.type.count, 1
    while step < lanes:
        partner = b.shuffle(vector, [i ^ step for i in range(lanes)])
        turned = b.const(vector.type, [-1.0 if i & step else 1.0 for i in range(lanes)])
        vector, step = b.fma(vector, turned, partner), 2 * step
    return vector


def _between(b: Build, vectors: list[Value]) -> list[Value]:
    """All steps among vectors."""
    step = 1
    while step < len(vectors):
        pairs = [(i, i + step) for i in range(len(vectors)) if not i & step]
        for i, j in pairs:
            vectors[i], vectors[j] = b.add(vectors[i], vectors[j]), b.sub(vectors[i], vectors[j])
        step *= 2
    return vectors


def _wider(b: Build, row: Value, size: int, block: int, part: int) -> None:
    """The steps from `part` on, over memory."""
    step = part
    while step < block:

        def pairs(first: Value, _: list[Value], step: int = step) -> None:
            def pair(i: Value, _: list[Value]) -> None:
                low, high = (b.at(row, b.mul(b.add(i, more), 4)) for more in (0, step))
                x, y = (b.load(at, b.vec(F32), align=4) for at in (low, high))
                b.store(b.add(x, y), low, align=4)
                b.store(b.sub(x, y), high, align=4)

            b.loop(first, b.add(first, step), b.lanes, [], pair)

        b.loop(0, size, 2 * step, [], pairs)
        step *= 2


def _scale(b: Build, row: Value, size: int, factors: Value) -> None:
    def vector(i: Value, _: list[Value]) -> None:
        at = b.mul(i, 4)
        b.store(b.mul(b.load(row, b.vec(F32), at, align=4), b.load(factors, b.vec(F32), at, align=4)), row, at, align=4)

    b.loop(0, size, b.lanes, [], vector)
