"""Four bytes in a lane at a time: products and look-ups, by what the target has for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from briolette.compiler.tiles import TILE

from .build import I8, I16, I32, Build, Value
from .packing import WORD

BYTES = 0x01010101  # times a byte: that byte four times


def emit_dot4(b: Build, total: Value, weights: Value, x: Value, bits: int) -> Value:
    """i32 lanes: total + the four unsigned bytes of `weights` (of so many bits) by the four signed bytes of x."""
    wide = b.vec(I32, TILE)
    if b.target.has("avx512vnni") and b.lanes == TILE:
        return b.intrinsic("llvm.x86.avx512.vpdpbusd.512", wide, [total, weights, x])
    if b.target.has("avx2"):
        dot = _dot4_vnni if b.target.multiplies_bytes else partial(_dot4_avx2, bits=bits)
        halves = [dot(b, *(b.slice(v, first, 8) for v in (total, weights, x))) for first in (0, 8)]
        return b.shuffle(halves[0], range(16), halves[1])
    for place in range(4):
        w = b.bit_and(b.shr(weights, 8 * place), 0xFF)
        a = b.ir.ashr(b.shl(x, 24 - 8 * place), b.const(wide, 24))
        total = b.add(total, b.mul(w, a))
    return total


def _dot4_vnni(b: Build, total: Value, weights: Value, x: Value) -> Value:
    """The same of eight lanes, in one instruction."""
    return b.intrinsic("llvm.x86.avx512.vpdpbusd.256", b.vec(I32, 8), [total, weights, x])


def _dot4_avx2(b: Build, total: Value, weights: Value, x: Value, bits: int) -> Value:
    """The same of eight lanes. Two products are added in 16 bits first, which those of whole bytes would not fit into:
    these are multiplied by halves."""
    bytes_of, pairs_of = b.vec(I8, 32), b.vec(I16, 16)
    signed = b.bits(x, bytes_of)
    halves = [(weights, 1)]
    if bits == 8:
        halves = [(b.bit_and(weights, 0x0F * BYTES), 1), (b.bit_and(b.shr(weights, 4), 0x0F * BYTES), 16)]
    for half, factor in halves:
        pairs = b.intrinsic("llvm.x86.avx2.pmadd.ub.sw", pairs_of, [b.bits(half, bytes_of), signed])
        fours = b.intrinsic("llvm.x86.avx2.pmadd.wd", b.vec(I32, 8), [pairs, b.const(pairs_of, factor)])
        total = b.add(total, fours)
    return total


def emit_lookup(b: Build, table: Sequence[int], index: Value) -> Value:
    """Bytes of a table of 16 by indices in the bytes of i32 lanes."""
    for feature, name, size in (
        ("avx512bw", "llvm.x86.avx512.pshuf.b.512", 64),
        ("avx2", "llvm.x86.avx2.pshuf.b", 32),
        ("ssse3", "llvm.x86.ssse3.pshuf.b.128", 16),
        ("neon", "llvm.aarch64.neon.tbl1.v16i8", 16),
    ):
        if not (b.target.has(feature) or (feature == "neon" and b.target.arm)):
            continue
        some = b.vec(I8, size)
        entries = b.const(some, list(table) * (size // 16))
        lanes = size // WORD
        parts = [b.bits(b.slice(index, at, lanes), some) for at in range(0, TILE, lanes)]
        found = [b.bits(b.intrinsic(name, some, [entries, part]), b.vec(I32, lanes)) for part in parts]
        while len(found) > 1:
            size = 2 * found[0].type.count
            found = [b.shuffle(x, range(size), y) for x, y in zip(found[::2], found[1::2], strict=True)]
        return found[0]
    result = b.const(index.type, 0)
    for place in range(4):
        one = b.bit_and(b.shr(index, 8 * place), 0xF)
        byte = b.const(index.type, table[0])
        for value, entry in enumerate(table[1:], 1):
            byte = b.ir.select(b.ir.icmp_unsigned("==", one, b.const(one.type, value)), b.const(one.type, entry), byte)
        result = b.bit_or(result, b.shl(byte, 8 * place))
    return result
