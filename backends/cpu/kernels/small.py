"""Kernels of little work: rotary tables and orders, the router's largest values, look-ups in rows, weighted sums.

Each is `void name(pointers..., i64 rows, i64 tid, i64 threads)` and writes thread `tid`'s rows, by `split`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from briolette.backends.cpu.build import F32, F64, I32, I64, PTR, VOID, Build, Target, Value, like
from briolette.backends.cpu.kernels import constants, split


def by_rows(module: ir.Module, target: Target, name: str, pointers: str, row: Callable[..., None]) -> ir.Function:
    """The function around `row(b, r, *pointers)`, which emits the work on row r."""
    labels = pointers.split()
    function = ir.Function(module, ir.FunctionType(VOID, [PTR] * len(labels) + [I64] * 3), name)
    for argument, label in zip(function.args, [*labels, "rows", "tid", "threads"], strict=True):
        argument.name = label
    b = Build(ir.IRBuilder(function.append_basic_block()), target)
    *given, rows, tid, threads = function.args
    first, last = split(b, rows, tid, threads)
    b.loop(first, last, 1, [], lambda r, _: row(b, r, *given))
    b.ir.ret_void()
    return function


def _along(b: Build, n: int, body: Callable[[Value, ir.Type], None]) -> None:
    """`body(byte offset, type)` over n f32: vectors, then what is left one by one."""
    whole = n - n % b.lanes
    b.loop(0, whole, b.lanes, [], lambda i, _: body(b.mul(i, 4), b.vec(F32)))
    b.loop(whole, n, 1, [], lambda i, _: body(b.mul(i, 4), F32))


def emit_rope_table(
    module: ir.Module,
    target: Target,
    name: str,
    half: int,
    has_freqs: bool,
    inverse: NDArray[np.float32],
    scale: float = 1.0,
) -> ir.Function:
    """`void name(ptr pos, [ptr freqs,] ptr out, i64 rows, tid, threads)`: out f32 [rows, half, 2] = cos, sin.

    The angle is pos * (inverse[i] / freqs[i] * scale), every operation rounded to f32 as in
    `briolette.compiler.ops.inverse_frequencies`, from which `inverse` comes without factors and with scale 1.
    cos and sin are the C library's, of doubles.
    """
    factor = np.float32(scale)
    base = constants(module, f".{name}.inverse", inverse if has_freqs else inverse * factor)

    def row(b: Build, r: Value, pos: Value, *rest: Value) -> None:
        freqs, out = rest if has_freqs else (None, rest[0])
        position = b.to_f32(b.load(pos, I32, b.mul(r, 4), align=4))
        to = b.at(out, b.mul(r, 8 * half))

        def pair(i: Value, _: list[Value]) -> None:
            turn = b.load(base, F32, b.mul(i, 4), align=4)
            if freqs is not None:
                turn = b.mul(b.div(turn, b.load(freqs, F32, b.mul(i, 4))), float(factor))
            angle = b.ir.fpext(b.mul(position, turn), F64)
            for j, function in enumerate(("cos", "sin")):
                value = b.ir.fptrunc(b.intrinsic(function, F64, [angle]), F32)
                b.store(value, to, b.add(b.mul(i, 8), 4 * j))

        b.loop(0, half, 1, [], pair)

    return by_rows(module, target, name, "pos freqs out" if has_freqs else "pos out", row)


def emit_top(module: ir.Module, target: Target, name: str, n: int, k: int) -> ir.Function:
    """`void name(ptr x, ptr out, i64 rows, tid, threads)`: x f32 [rows, n] -> ids i32 [rows, k], the largest
    first, of equals the lowest id, NaN before all: k passes for the largest that comes after the one before."""

    def row(b: Build, r: Value, x: Value, out: Value) -> None:
        start, to = b.at(x, b.mul(r, 4 * n)), b.at(out, b.mul(r, 4 * k))
        whole = n - n % b.lanes

        def pick(j: Value, carried: Sequence[Value]) -> list[Value]:
            def best(i: Value, found: Value) -> Value:
                """The better of `found` and the keys at i that are below the previous pick's."""
                key = sort_key(b, b.load(start, like(found.type, F32), b.mul(i, 4)), i)
                below = b.ir.icmp_unsigned("<", key, _repeated(b, carried[0], key.type))
                more = b.ir.and_(below, b.ir.icmp_unsigned(">", key, found))
                return b.ir.select(more, key, found)

            nothing = ir.Constant(b.vec(I64), None)
            (lanes,) = b.loop(0, whole, b.lanes, [nothing], lambda i, c: [best(i, c[0])])
            largest = b.reduce(lanes, lambda p, q: b.ir.select(b.ir.icmp_unsigned(">", p, q), p, q))
            (largest,) = b.loop(whole, n, 1, [largest], lambda i, c: [best(i, c[0])])
            b.store(b.ir.trunc(b.ir.not_(largest), I32), to, b.mul(j, 4))
            return [largest]

        b.loop(0, k, 1, [b.i64(-1)], pick)

    return by_rows(module, target, name, "x out", row)


def _repeated(b: Build, value: Value, ty: ir.Type) -> Value:
    return b.splat(value, ty.count) if isinstance(ty, ir.VectorType) else value


def sort_key(b: Build, x: Value, index: Value) -> Value:
    """i64 of f32 values, a vector of them or one, whose indices begin with `index`: unsigned numbers that sort as the
    values do and never are equal. Above, the value's bits made monotonic, with NaN before all; below, the complement of
    its index."""
    ty = like(x.type, I64)
    bits = b.bits(b.add(x, 0.0), like(ty, I32))  # -0 is no less than 0
    sign = b.ir.ashr(bits, b.const(bits.type, 31))
    order = b.ir.xor(bits, b.bit_or(sign, 0x80000000))
    # One less than the largest, which would make a key that is no less than what `emit_top` begins with.
    order = b.ir.select(b.ir.fcmp_ordered("ord", x, x), order, b.const(bits.type, 0xFFFFFFFE))
    place = _repeated(b, b.ir.not_(b.ir.trunc(index, I32)), bits.type)
    if isinstance(ty, ir.VectorType):
        place = b.sub(place, list(range(ty.count)))
    return b.bit_or(b.shl(b.ir.zext(order, ty), 32), b.ir.zext(place, ty))


def emit_take(module: ir.Module, target: Target, name: str, n: int, k: int, vector: bool) -> ir.Function:
    """`void name(ptr x, ptr ids, ptr out, i64 rows, tid, threads)`: out[r, j] = x[r, ids[r, j]], of f32
    [rows, n] by i32 [rows, k]; where `vector`, x is [n] for all rows. Ids are not checked."""

    def row(b: Build, r: Value, x: Value, ids: Value, out: Value) -> None:
        source = x if vector else b.at(x, b.mul(r, 4 * n))

        def one(j: Value, _: list[Value]) -> None:
            at = b.mul(b.add(b.mul(r, k), j), 4)
            index = b.ir.sext(b.load(ids, I32, at, align=4), I64)
            b.store(b.load(source, F32, b.mul(index, 4)), out, at)

        b.loop(0, k, 1, [], one)

    return by_rows(module, target, name, "x ids out", row)


def emit_combine(module: ir.Module, target: Target, name: str, used: int, n: int) -> ir.Function:
    """`void name(ptr x, ptr w, ptr out, i64 rows, tid, threads)`: f32 [rows, used, n] times [rows, used],
    summed to [rows, n] in order."""

    def row(b: Build, r: Value, x: Value, w: Value, out: Value) -> None:
        sizes = ((x, used * n), (out, n), (w, used))
        source, to, weights = (b.at(ptr, b.mul(r, 4 * size)) for ptr, size in sizes)

        def columns(at: Value, ty: ir.Type) -> None:
            def add(u: Value, total: list[Value]) -> list[Value]:
                weight = b.load(weights, F32, b.mul(u, 4))
                if isinstance(ty, ir.VectorType):
                    weight = b.splat(weight)
                value = b.load(b.at(source, b.mul(u, 4 * n)), ty, at)
                return [b.fma(weight, value, total[0])]

            b.store(b.loop(0, used, 1, [b.const(ty, 0.0)], add)[0], to, at)

        _along(b, n, columns)

    return by_rows(module, target, name, "x w out", row)


def emit_rotary_first(
    module: ir.Module, target: Target, name: str, size: int, pairs: int, half: int, inverse: bool, has_factors: bool
) -> ir.Function:
    """`void name(ptr x, [ptr w,] ptr out, i64 rows, tid, threads)`: f32 [rows, size] with the dimensions of the first
    `pairs` pairs (i, i + half) first, the others times w [size] where there is such; `inverse`: put back."""

    def row(b: Build, r: Value, x: Value, *rest: Value) -> None:
        factors, out = rest if has_factors else (None, rest[0])
        source, to = b.at(x, b.mul(r, 4 * size)), b.at(out, b.mul(r, 4 * size))
        place = 0
        # The order is four stretches: the turned halves of the pairs, then what lies behind each.
        for start, count in ((0, pairs), (half, pairs), (pairs, half - pairs), (half + pairs, size - half - pairs)):
            there, here = (4 * place, 4 * start) if inverse else (4 * start, 4 * place)

            def part(at: Value, ty: ir.Type, there: int = there, here: int = here, place: int = place) -> None:
                value = b.load(b.at(source, there), ty, at)
                if factors is not None and place >= 2 * pairs:
                    value = b.mul(value, b.load(b.at(factors, there), ty, at))
                b.store(value, b.at(to, here), at)

            _along(b, count, part)
            place += count

    return by_rows(module, target, name, "x w out" if has_factors else "x out", row)
