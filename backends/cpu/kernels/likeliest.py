"""The largest of many values, found by the kernel that makes them.

Every thread keeps a list of the largest values that it has made, in order, as keys that sort as the values do; what it
makes is compared with the least of them, a vector at a time, and hardly any goes in: of n values in random order, a
list of k takes in about k * (1 + ln(n / k)). One thread puts the lists together.

A list is

    f32 least | i64 count | from byte 64 on: i64 key [count + 1]

where `least` is what a value must reach to be looked at, and keys are those of `small.sort_key`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llvmlite import ir

from ..build import F32, I32, I64, PTR, VOID, Build, Target, Value, lanes_of
from .small import sort_key

COUNT, KEYS = 8, 64  # where in a list they lie


def list_bytes(count: int) -> int:
    """What a list of so many values takes, with one key that is no value's, at its end."""
    return KEYS + 8 * (count + 1)


def open_list(module: ir.Module, target: Target) -> ir.Function:
    """`void f(ptr list, i64 count)`: an empty list for `count` values; one for none takes in none."""

    def emit(b: Build, kept: Value, count: Value) -> None:
        some = b.ir.icmp_signed(">", count, b.i64(0))
        b.store(b.ir.select(some, b.f32(-math.inf), b.f32(math.inf)), kept, align=4)
        b.store(count, kept, COUNT, align=8)
        b.loop(0, b.add(count, 1), 1, [], lambda i, _: b.store(b.i64(0), kept, _offset(b, i), align=8))

    return _function(module, target, "likeliest.open", [PTR, I64], emit)


def emit_offers(b: Build, kept: Value, values: Value, column: Value) -> None:
    """Within a kernel: takes into a list what is large enough of a vector of values, whose indices begin with
    `column`."""
    n = lanes_of(values)
    least = b.splat(b.load(kept, F32, align=4), n)
    large = b.ir.fcmp_unordered(">=", values, least)
    some = b.ir.icmp_unsigned("!=", b.bits(large, ir.IntType(n)), ir.Constant(ir.IntType(n), 0))
    with b.ir.if_then(some, likely=False):
        b.ir.call(_take_in(b.module, b.target, n), [kept, values, column])


def _take_in(module: ir.Module, target: Target, n: int) -> ir.Function:
    """`void f(ptr list, <n x float> values, i64 column)`."""

    def emit(b: Build, kept: Value, values: Value, column: Value) -> None:
        count = b.load(kept, I64, COUNT, align=8)
        with b.ir.if_then(b.ir.icmp_signed(">", count, b.i64(0))):
            last = _offset(b, b.sub(count, 1))

            def one(i: Value, _: list[Value]) -> None:
                key = sort_key(b, b.ir.extract_element(values, i), b.add(column, i))
                with b.ir.if_then(b.ir.icmp_unsigned(">", key, b.load(kept, I64, last, align=8))):
                    b.loop(0, count, 1, [key], later)

            def later(at: Value, carried: list[Value]) -> list[Value]:
                """Puts the larger key here, and carries the smaller on."""
                here = b.load(kept, I64, _offset(b, at), align=8)
                larger = b.ir.icmp_unsigned(">", carried[0], here)
                b.store(b.ir.select(larger, carried[0], here), kept, _offset(b, at), align=8)
                return [b.ir.select(larger, here, carried[0])]

            b.loop(0, n, 1, [], one)
            least = b.load(kept, I64, last, align=8)
            full = b.ir.icmp_unsigned("!=", least, b.i64(0))
            b.store(b.ir.select(full, _value(b, least), b.f32(-math.inf)), kept, align=4)

    return _function(module, target, f"likeliest.take_in.{n}", [PTR, ir.VectorType(F32, n), I64], emit)


def merge_lists(module: ir.Module, target: Target) -> ir.Function:
    """`void f(ptr lists, ptr ids, ptr values, i64 stride, i64 threads)`: the largest values of all lists, which are
    `stride` bytes apart and of one length, and their indices. The lists are used up."""

    def emit(b: Build, lists: Value, ids: Value, values: Value, stride: Value, threads: Value) -> None:
        def pick(at: Value, _: list[Value]) -> None:
            def larger(t: Value, best: list[Value]) -> list[Value]:
                """The first key that is left in a list, if it is: `least` now counts those that are gone."""
                kept = b.at(lists, b.mul(t, stride))
                key = b.load(kept, I64, _offset(b, _gone(b, kept)), align=8)
                more = b.ir.icmp_unsigned(">", key, best[0])
                return [b.ir.select(more, key, best[0]), b.ir.select(more, t, best[1])]

            key, owner = b.loop(0, threads, 1, [b.i64(0), b.i64(0)], larger)
            kept = b.at(lists, b.mul(owner, stride))
            b.store(b.ir.trunc(b.add(_gone(b, kept), 1), I32), kept, align=4)
            b.store(b.ir.trunc(b.ir.not_(key), I32), ids, b.mul(at, 4), align=4)
            b.store(_value(b, key), values, b.mul(at, 4), align=4)

        b.loop(0, threads, 1, [], lambda t, _: b.store(b.i32(0), lists, b.mul(t, stride), align=4))
        b.loop(0, b.load(lists, I64, COUNT, align=8), 1, [], pick)

    return _function(module, target, "likeliest.merge", [PTR, PTR, PTR, I64, I64], emit)


def _gone(b: Build, kept: Value) -> Value:
    return b.ir.zext(b.load(kept, I32, align=4), I64)


def _function(
    module: ir.Module, target: Target, name: str, args: list[ir.Type], emit: Callable[..., None]
) -> ir.Function:
    """The function of a name, made once: `emit(b, *args)` emits what it does."""
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(VOID, args), name)
        found.linkage = "internal"
        found.attributes.add("noinline")
        b = Build(ir.IRBuilder(found.append_basic_block()), target)
        emit(b, *found.args)
        b.ir.ret_void()
    return found


def _offset(b: Build, at: Value) -> Value:
    return b.add(b.mul(at, 8), KEYS)


def _value(b: Build, key: Value) -> Value:
    """The value of a key; of NaN, one."""
    order = b.ir.trunc(b.shr(key, 32), I32)
    sign = b.ir.ashr(b.ir.not_(order), b.i32(31))
    return b.bits(b.ir.xor(order, b.bit_or(sign, 0x80000000)), F32)
