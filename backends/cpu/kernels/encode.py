"""Heads to codes of a cache plane (`briolette.compiler.codecs`), where `coded` says they lie.

A head's codes are first found, a byte each; then they are put together, four dimensions and a bit plane at a time, with
those that share their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from briolette.compiler.codecs import Codec

from ..build import F32, I8, I32, I64, PTR, VOID, Build, Target, Value
from ..coded import GROUP, LINE, UNIT, BitPlane, Coded
from . import constants, smaller, split

TOGETHER = 32  # values of a head that share the bytes of a plane of single bits
UNROLLED = 16  # thresholds that are compared with one after the other, without a loop


def emit_encode(module: ir.Module, target: Target, name: str, codec: Codec, heads: int, size: int) -> ir.Function:
    """`void name(ptr x, pos, out, i64 capacity, ptr slots, scratch, i64 tokens, tid, threads)`.

    x: f32 [tokens, heads, size]. pos, slots: i32 [tokens]; a token goes to place pos % capacity of its slot's part of
    `out`, a coded plane of `capacity` positions for each slot and head. scratch: this thread's own, `scratch_bytes`.
    """
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, PTR, I64, PTR, PTR, I64, I64, I64]), name)
    b = Build(ir.IRBuilder(function.append_basic_block()), target)
    x, pos, out, capacity, slots, scratch, tokens, tid, threads = function.args
    encoder = _Encoder(b, name, codec, size, scratch)
    ring_bytes = encoder.ring_bytes(capacity)

    def row(r: Value, _: list[Value]) -> None:
        token, head = b.ir.udiv(r, b.i64(heads)), b.ir.urem(r, b.i64(heads))
        position, slot = (b.ir.sext(b.load(of, I32, b.shl(token, 2), align=4), I64) for of in (pos, slots))
        ring = b.at(out, b.mul(b.add(b.mul(slot, heads), head), ring_bytes))
        encoder.row(b.at(x, b.mul(r, 4 * size)), ring, capacity, b.ir.urem(position, capacity))

    first, last = split(b, b.mul(tokens, heads), tid, threads)
    b.loop(first, last, 1, [], row)
    b.ir.ret_void()
    return function


def scratch_bytes(size: int) -> int:
    """The codes of a head, a byte each, and zeros up to the most that share a vector of a bit plane."""
    return -(-size // TOGETHER) * TOGETHER


class _Encoder:
    def __init__(self, b: Build, name: str, codec: Codec, size: int, scratch: Value):
        self.b, self.codec, self.size = b, codec, size
        self.coded = Coded(codec, size)
        self.block = self.coded.width
        self.lanes = min(b.lanes, self.block)
        self.values = constants(b.module, f".{name}.table", codec.table(size))
        self.thresholds = codec.thresholds(size)
        self.compared = constants(b.module, f".{name}.thresholds", self.thresholds)
        self.codes = scratch
        for start in range(0, scratch_bytes(size), TOGETHER):
            b.store(b.const(b.vec(I8, TOGETHER), 0), scratch, start)

    def ring_bytes(self, capacity: Value) -> Value:
        """`Coded.ring_bytes` of a capacity that is known when it runs."""
        b, coded = self.b, self.coded
        used = b.mul(b.ir.udiv(capacity, b.i64(GROUP)), coded.group_bytes + coded.scale_bytes)
        return b.bit_and(b.add(used, LINE - 1), -LINE)

    def row(self, x: Value, ring: Value, capacity: Value, place: Value) -> None:
        b, coded = self.b, self.coded
        group, lane = b.ir.udiv(place, b.i64(GROUP)), b.ir.urem(place, b.i64(GROUP))
        scales = b.at(ring, b.mul(b.ir.udiv(capacity, b.i64(GROUP)), coded.group_bytes))
        scales = b.at(scales, b.add(b.mul(group, coded.scale_bytes), b.mul(lane, 2)))

        def block(n: Value, _: list[Value]) -> None:
            first = b.mul(n, self.block)
            scale = self.fitted(b.at(x, b.mul(first, 4)), b.at(self.codes, first))
            b.store(b.to_f16_bits(scale), scales, b.mul(n, 2 * GROUP), align=2)

        b.loop(0, coded.blocks, 1, [], block)
        to = b.at(ring, b.add(b.mul(group, coded.group_bytes), b.mul(lane, UNIT)))
        for plane in coded.planes:
            self.put(b.at(to, plane.offset), plane)

    def put(self, to: Value, plane: BitPlane) -> None:
        """One bit plane of a head: of each vector the four bytes that are this position's."""
        b, bits = self.b, plane.bits

        def vector(v: Value, _: list[Value]) -> None:
            source, word = b.at(self.codes, b.mul(v, UNIT * plane.together)), b.i32(0)
            for unit in range(plane.together):
                four = b.shr(b.load(source, I32, UNIT * unit, align=4), plane.shift)
                word = b.bit_or(word, b.shl(b.bit_and(four, ((1 << bits) - 1) * 0x01010101), bits * unit))
            b.store(word, to, b.mul(v, LINE), align=4)

        b.loop(0, plane.vectors, 1, [], vector)

    # --- codes and scales of one block ------------------------------------------------------------------

    def fitted(self, x: Value, codes: Value) -> Value:
        """Writes the codes of a block; gives its scale, f32."""
        return self.linear(x, codes) if self.codec.fit == "absmax" else self.nearest(x, codes)

    def vectors(self, init: Sequence[Value], body) -> list[Value]:
        """`body(index of the first, carried)` for each vector of a block."""
        return self.b.loop(0, self.block, self.lanes, init, body)

    def read(self, x: Value, at: Value) -> Value:
        return self.b.load(x, self.b.vec(F32, self.lanes), self.b.mul(at, 4), align=4)

    def write(self, codes: Value, at: Value, found: Value) -> None:
        self.b.store(self.b.ir.trunc(found, self.b.vec(I8, self.lanes)), codes, at)

    def squares(self, x: Value) -> Value:
        b, zero = self.b, self.b.zeros(self.lanes)
        (total,) = self.vectors([zero], lambda at, c: [b.fma(self.read(x, at), self.read(x, at), c[0])])
        return b.reduce_add(total)

    def nearest(self, x: Value, codes: Value) -> Value:
        """Each value to the nearest of the table, once the block is as long as the table's: codes are how many
        thresholds lie below it. The scale is |x| / |t| or, "eden", x.x / x.t, of what the table has, t."""
        b, zero = self.b, self.b.zeros(self.lanes)
        norm = self.b.intrinsic("llvm.sqrt", F32, [self.squares(x)], over=[F32])
        some = b.ir.fcmp_ordered(">", norm, b.f32(0.0))
        longer = b.splat(b.ir.select(some, b.div(b.f32(self.block**0.5), norm), b.f32(0.0)), self.lanes)

        def vector(at: Value, carried: list[Value]) -> list[Value]:
            values = self.read(x, at)
            found = self.below(b.mul(values, longer))
            self.write(codes, at, found)
            kept = self.looked_up(found)
            other = values if self.codec.fit == "eden" else kept
            return [b.fma(kept, other, carried[0])]

        (total,) = self.vectors([zero], vector)
        product = b.reduce_add(total)
        if self.codec.fit == "eden":
            scale = b.div(b.mul(norm, norm), product)
        else:
            scale = b.div(norm, b.intrinsic("llvm.sqrt", F32, [product], over=[F32]))
        return b.ir.select(some, scale, b.f32(0.0))

    def below(self, y: Value) -> Value:
        """How many thresholds lie below each value."""
        b, ints = self.b, self.b.vec(I32, self.lanes)

        def count(found: Value, threshold: Value) -> Value:
            return b.sub(found, b.ir.sext(b.ir.fcmp_ordered(">", y, threshold), ints))  # true is -1

        if len(self.thresholds) <= UNROLLED:
            found = b.const(ints, 0)
            for threshold in self.thresholds:
                found = count(found, b.splat(float(threshold), self.lanes))
            return found

        def one(i: Value, carried: list[Value]) -> list[Value]:
            return [count(carried[0], b.splat(b.load(self.compared, F32, b.mul(i, 4), align=4), self.lanes))]

        return b.loop(0, len(self.thresholds), 1, [b.const(ints, 0)], one)[0]

    def looked_up(self, codes: Value) -> Value:
        """What the table has for each code."""
        b = self.b
        found = b.zeros(self.lanes)
        for lane in range(self.lanes):
            index = b.ir.zext(b.ir.extract_element(codes, b.i32(lane)), I64)
            value = b.load(self.values, F32, b.mul(index, 4), align=4)
            found = b.ir.insert_element(found, value, b.i32(lane))
        return found

    def linear(self, x: Value, codes: Value) -> Value:
        """Evenly spaced values, as in ggml: 8 bits from the largest magnitude, 127 steps of it each way; 4 bits from
        the value of the largest magnitude, which becomes -8."""
        b, ends = self.b, [self.b.zeros(self.lanes)] * 2
        high, low = self.vectors(ends, lambda at, c: [b.max(self.read(x, at), c[0]), b.min(self.read(x, at), c[1])])
        most, least = b.reduce_max(high), b.reduce(low, b.min)
        further = b.ir.fcmp_ordered(">", b.neg(least), most)
        if self.codec.bits == 8:
            scale = b.div(b.ir.select(further, b.neg(least), most), b.f32(127.0))
        else:
            scale = b.div(b.ir.select(further, least, most), b.f32(-8.0))
        some = b.ir.fcmp_unordered("!=", scale, b.f32(0.0))
        steps = b.splat(b.ir.select(some, b.div(b.f32(1.0), scale), b.f32(0.0)), self.lanes)

        def vector(at: Value, _: list[Value]) -> None:
            self.write(codes, at, self.stepped(b.mul(self.read(x, at), steps)))

        self.vectors([], vector)
        return scale

    def stepped(self, y: Value) -> Value:
        """The code of a value in steps; with 8 bits halves go away from zero, with 4 they go up."""
        b, ints = self.b, self.b.vec(I32, self.lanes)
        if self.codec.bits == 8:
            half = b.intrinsic("llvm.copysign", y.type, [b.const(y.type, 0.5), y], over=[y.type])
            return b.add(b.ir.fptosi(b.add(y, half), ints), 128)
        return smaller(b, b.ir.fptosi(b.add(y, 8.5), ints), b.const(ints, 15))
