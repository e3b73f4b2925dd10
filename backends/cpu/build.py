"""A thin layer over `llvmlite.ir` that every CPU kernel is written with.

`Build` adds to an `IRBuilder` what kernels say again and again: vectors, unaligned loads at byte offsets,
counted loops with carried values, conversions of stored bits to f32, table look-ups. Nothing here sets a
fast-math flag, so code computes exactly what it spells: a `mul` followed by an `add` stays two roundings,
`fma` asks for one.

Pointers are opaque (`ptr`), so a pointer has no element type: loads name theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from llvmlite import ir

from .target import Target

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
PTR, VOID = ir.PointerType(), ir.VoidType()

Value: TypeAlias = ir.Value
Number: TypeAlias = "int | float"
Operand: TypeAlias = "Value | Number | Sequence[Number]"  # what arithmetic accepts beside IR values


def lanes_of(value: Value) -> int:
    """How many elements a value's type has; 1 for a scalar."""
    return value.type.count if isinstance(value.type, ir.VectorType) else 1


def scalar(ty: ir.Type) -> ir.Type:
    """A vector type's element; a scalar type itself."""
    return ty.element if isinstance(ty, ir.VectorType) else ty


def like(ty: ir.Type, element: ir.Type) -> ir.Type:
    """`ty` with another element: the same number of lanes."""
    return ir.VectorType(element, ty.count) if isinstance(ty, ir.VectorType) else element


def mangle(ty: ir.Type) -> str:
    """How LLVM spells a type in the name of an overloaded intrinsic: `v16f32`, `i8`, `p0`."""
    if isinstance(ty, ir.VectorType):
        return f"v{ty.count}{mangle(ty.element)}"
    return str(ty.intrinsic_name)


class Build:
    """Emits code at the end of `ir.block` for `target`. The raw builder stays reachable as `ir`."""

    def __init__(self, builder: ir.IRBuilder, target: Target):
        self.ir, self.target = builder, target
        self.lanes = target.lanes
        self._scratch: dict[tuple[object, ...], Value] = {}
        self._consts: dict[tuple[object, ...], ir.Constant] = {}

    @property
    def module(self) -> ir.Module:
        return self.ir.function.module

    # -- types, constants, vectors --

    def vec(self, ty: ir.Type, n: int | None = None) -> ir.Type:
        """A vector of `n` (by default `lanes`) elements."""
        return ir.VectorType(ty, n or self.lanes)

    def const(self, ty: ir.Type, value: Number | Sequence[Number]) -> ir.Constant:
        """A constant: a number is repeated over a vector type's lanes, a sequence gives one per lane."""
        if not isinstance(ty, ir.VectorType):
            return ir.Constant(ty, value)
        values = tuple(value) if isinstance(value, Sequence) else (value,) * ty.count
        key = (ty.count, str(ty.element), values)
        if key not in self._consts:  # one object a constant: llvmlite caches its text, which is slow to make
            self._consts[key] = ir.Constant(ty, [ir.Constant(ty.element, v) for v in values])
        return self._consts[key]

    def undefined(self, ty: ir.Type) -> ir.Constant:
        """A value of which no lane is going to be used."""
        return self._consts.setdefault((str(ty),), ir.Constant(ty, ir.Undefined))

    def f32(self, value: float) -> ir.Constant:
        return ir.Constant(F32, value)

    def i32(self, value: int) -> ir.Constant:
        return ir.Constant(I32, value)

    def i64(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def zeros(self, n: int | None = None) -> ir.Constant:
        """A zero f32 vector, such as an accumulator starts from."""
        return ir.Constant(self.vec(F32, n), None)

    def splat(self, value: Value | float, n: int | None = None) -> Value:
        """A scalar (a Python float is an f32) in every lane."""
        if isinstance(value, (int, float)):
            return self.const(self.vec(F32, n), value)
        one = self.ir.insert_element(self.undefined(self.vec(value.type, n)), value, self.i32(0))
        return self.lane(one, 0, n or self.lanes)

    def shuffle(self, a: Value, mask: Sequence[int], b: Value | None = None) -> Value:
        """Elements of `a` followed by `b`, picked by constant indices."""
        other = self.undefined(a.type) if b is None else b
        return self.ir.shuffle_vector(a, other, self.const(self.vec(I32, len(mask)), list(mask)))

    def lane(self, vector: Value, index: int, n: int | None = None) -> Value:
        """One element of a vector, repeated in `n` lanes."""
        return self.shuffle(vector, [index] * (n or self.lanes))

    def slice(self, vector: Value, start: int, n: int) -> Value:
        """`n` consecutive elements."""
        if start == 0 and n == lanes_of(vector):
            return vector
        return self.shuffle(vector, range(start, start + n))

    # -- arithmetic, integer or float by type; Python numbers become constants like the other operand --

    def _pair(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        ty = a.type if isinstance(a, ir.Value) else cast(ir.Value, b).type
        return tuple(v if isinstance(v, ir.Value) else self.const(ty, v) for v in (a, b))

    def _arith(self, name: str, a: Operand, b: Operand) -> Value:
        x, y = self._pair(a, b)
        floating = isinstance(scalar(x.type), (ir.FloatType, ir.DoubleType, ir.HalfType))
        return getattr(self.ir, "f" + name if floating else name)(x, y)

    def add(self, a: Operand, b: Operand) -> Value:
        return self._arith("add", a, b)

    def sub(self, a: Operand, b: Operand) -> Value:
        return self._arith("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> Value:
        return self._arith("mul", a, b)

    def div(self, a: Operand, b: Operand) -> Value:
        """Float division."""
        return self.ir.fdiv(*self._pair(a, b))

    def neg(self, a: Value) -> Value:
        return self.ir.fneg(a)

    def bit_and(self, a: Operand, b: Operand) -> Value:
        return self.ir.and_(*self._pair(a, b))

    def bit_or(self, a: Operand, b: Operand) -> Value:
        return self.ir.or_(*self._pair(a, b))

    def shl(self, a: Operand, b: Operand) -> Value:
        return a if b == 0 else self.ir.shl(*self._pair(a, b))

    def shr(self, a: Operand, b: Operand) -> Value:
        """Logical shift right."""
        return a if b == 0 else self.ir.lshr(*self._pair(a, b))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once where the target has the instruction, else twice (never a call of fmaf)."""
        if not self.target.fma:
            return self.ir.fadd(self.ir.fmul(a, b), c)
        return self.intrinsic("llvm.fma", a.type, [a, b, c], over=[a.type])

    def max(self, a: Operand, b: Operand) -> Value:
        """The larger float, `b` where either is NaN (one instruction on x86)."""
        x, y = self._pair(a, b)
        return self.ir.select(self.ir.fcmp_ordered(">", x, y), x, y)

    def min(self, a: Operand, b: Operand) -> Value:
        """The smaller float, `b` where either is NaN."""
        x, y = self._pair(a, b)
        return self.ir.select(self.ir.fcmp_ordered("<", x, y), x, y)

    def intrinsic(self, name: str, ret: ir.Type, args: Sequence[Value], over: Sequence[ir.Type] = ()) -> Value:
        """Call an LLVM intrinsic or another external symbol; `over` are the types that mangle its name."""
        full = ".".join([name, *map(mangle, over)])
        function = self.module.globals.get(full)
        if function is None:
            types = [PTR if isinstance(a.type, ir.PointerType) else a.type for a in args]
            function = ir.Function(self.module, ir.FunctionType(ret, types), full)
        return self.ir.call(function, args)

    def reduce(self, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Halve by shuffles until one is left: a fixed order, so every target adds alike."""
        while (n := lanes_of(vector) // 2) >= 1:
            vector = combine(self.slice(vector, 0, n), self.slice(vector, n, n))
        return self.ir.extract_element(vector, self.i32(0))

    def reduce_add(self, vector: Value) -> Value:
        """The sum of the lanes (a power of two), halves added pairwise."""
        return self.reduce(vector, self.add)

    def reduce_max(self, vector: Value) -> Value:
        return self.reduce(vector, self.max)

    # -- memory --

    def at(self, ptr: Value, offset: int | Value) -> Value:
        """`ptr` moved by a number of bytes."""
        if isinstance(offset, int):
            if offset == 0:
                return ptr
            offset = self.i64(offset)
        return self.ir.gep(ptr, [offset], source_etype=I8)

    def load(self, ptr: Value, ty: ir.Type, offset: int | Value = 0, align: int = 1) -> Value:
        """A value of type `ty` at `offset` bytes; unaligned unless `align` promises more."""
        return self.ir.load(self.at(ptr, offset), typ=ty, align=align)

    def broadcast(self, ptr: Value, ty: ir.Type, offset: int | Value = 0, n: int | None = None) -> Value:
        """A number of four bytes at `offset` in every lane, which is one load."""
        return self.lane(self.load(ptr, self.vec(ty, 1), offset, align=4), 0, n)

    def store(self, value: Value, ptr: Value, offset: int | Value = 0, align: int = 1) -> None:
        self.ir.store(value, self.at(ptr, offset), align=align)

    def clear(self, ptr: Value, size: Value) -> None:
        """Sets so many bytes to zero."""
        args = [ptr, ir.Constant(I8, 0), size, ir.Constant(I1, 0)]
        self.intrinsic("llvm.memset", VOID, args, over=[PTR, I64])

    def scratch(self, ty: ir.Type, *key: object) -> Value:
        """Room for one `ty` on the function's stack, 64-aligned; the same room for the same key."""
        slot = (self.ir.function.name, ty, *key)
        if slot not in self._scratch:
            with self.ir.goto_entry_block():
                self._scratch[slot] = self.ir.alloca(ty)
                self._scratch[slot].align = 64
        return self._scratch[slot]

    def prefetch(self, ptr: Value, offset: int | Value = 0, span: int = 64, locality: int = 2) -> None:
        """Ask early for the cache lines of `span` bytes. Locality 3 is L1; 2, L2, is best for streams."""
        first = self.at(ptr, offset)
        for line in range(0, span, 64):
            args = [self.at(first, line), self.i32(0), self.i32(locality), self.i32(1)]
            self.intrinsic("llvm.prefetch", VOID, args, over=[PTR])

    def table(self, ty: ir.Type, values: Sequence[Number]) -> Value:
        """A pointer to constants in the module; equal tables are stored once."""
        name = f".table.{ty}." + "_".join(str(v).replace("-", "m") for v in values)
        found = self.module.globals.get(name)
        if found is None:
            array = ir.ArrayType(ty, len(values))
            found = ir.GlobalVariable(self.module, array, name)
            found.initializer = ir.Constant(array, list(values))
            found.global_constant, found.linkage, found.align = True, "private", 64
        return self.ir.bitcast(found, PTR)

    # -- control --

    def loop(
        self,
        start: int | Value,
        stop: int | Value,
        step: int | Value,
        init: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value] | None],
    ) -> list[Value]:
        """`for i in range(start, stop, step)` for a positive step, with values carried from turn to turn.

        i is a signed i64. `body(i, carried)` emits one turn, in which it may open blocks and loops, and
        returns the next carried values (None for none). The result is those after the last turn, or `init`.
        """
        known = isinstance(start, int) and isinstance(stop, int)
        if known and start >= stop:
            return list(init)
        start, stop, step = (self.i64(v) if isinstance(v, int) else v for v in (start, stop, step))
        function, before = self.ir.function, self.ir.block
        inside, after = function.append_basic_block("loop"), function.append_basic_block("done")
        if known:
            self.ir.branch(inside)
        else:
            self.ir.cbranch(self.ir.icmp_signed("<", start, stop), inside, after)
        self.ir.position_at_end(inside)
        index = self.ir.phi(I64)
        carried = [self.ir.phi(v.type) for v in init]
        following = list(body(index, list(carried)) or [])
        assert len(following) == len(carried), "a loop's body returns as many values as it carries"
        latch = self.ir.block
        for phi, first, then in zip(
            [index, *carried], [start, *init], [self.ir.add(index, step), *following], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(then, latch)
        more = self.ir.icmp_signed("<", index.incomings[1][0], stop)
        self.ir.cbranch(more, inside, after)
        self.ir.position_at_end(after)
        if known:
            return following
        results = []
        for first, then in zip(init, following, strict=True):
            phi = self.ir.phi(then.type)
            phi.add_incoming(first, before)
            phi.add_incoming(then, latch)
            results.append(phi)
        return results

    # -- conversions of stored values to f32, scalar or vector --

    def widen(self, value: Value, signed: bool = False) -> Value:
        """i8 or i16 to i32."""
        ty = like(value.type, I32)
        return self.ir.sext(value, ty) if signed else self.ir.zext(value, ty)

    def to_f32(self, value: Value, signed: bool = True) -> Value:
        """Integers to f32. Narrow ones go by way of i32, whose conversion is the one that CPUs have."""
        if scalar(value.type).width < 32:
            value, signed = self.widen(value, signed), True
        ty = like(value.type, F32)
        return self.ir.sitofp(value, ty) if signed else self.ir.uitofp(value, ty)

    def bits(self, value: Value, ty: ir.Type) -> Value:
        """Reinterpret."""
        return self.ir.bitcast(value, ty)

    def bf16_to_f32(self, value: Value) -> Value:
        """bf16 given as i16 bits."""
        return self.bits(self.shl(self.widen(value), 16), like(value.type, F32))

    def f16_to_f32(self, value: Value) -> Value:
        """f16 given as i16 bits, exact. Without an instruction: shifts and one exact multiplication."""
        out = like(value.type, F32)
        if self.target.half:
            return self.ir.fpext(self.bits(value, like(value.type, F16)), out)
        wide = self.widen(value)
        body = self.shl(self.bit_and(wide, 0x7FFF), 13)
        # An f16 exponent read as an f32 one is 112 too small; the product also normalises subnormals.
        scaled = self.bits(self.mul(self.bits(body, out), 2.0**112), body.type)
        special = self.ir.icmp_unsigned(">=", body, self.const(body.type, 0x7C00 << 13))
        scaled = self.ir.select(special, self.bit_or(body, 0x7F800000), scaled)
        return self.bits(self.bit_or(scaled, self.shl(self.bit_and(wide, 0x8000), 16)), out)

    def to_bf16_bits(self, value: Value) -> Value:
        """f32 to the i16 bits of the nearest bf16, ties to even. NaN stays NaN."""
        wide = self.bits(value, like(value.type, I32))
        even = self.add(self.bit_and(self.shr(wide, 16), 1), 0x7FFF)
        known = self.ir.fcmp_ordered("ord", value, value)
        wide = self.ir.select(known, self.add(wide, even), self.bit_or(wide, 0x400000))
        return self.ir.trunc(self.shr(wide, 16), like(value.type, I16))

    def to_f16_bits(self, value: Value) -> Value:
        """f32 to the i16 bits of the nearest f16, ties to even; too large is infinity, NaN stays NaN."""
        if self.target.half:
            return self.bits(self.ir.fptrunc(value, like(value.type, F16)), like(value.type, I16))
        wide = self.bits(value, like(value.type, I32))
        size = self.bit_and(wide, 0x7FFFFFFF)
        # A normal result: move the exponent, add just less than half, carry into it what rounds up.
        normal = self.add(self.add(size, 0xFFF - (112 << 23)), self.bit_and(self.shr(size, 13), 1))
        # A subnormal one: f32 addition rounds at the last bit of the larger number, here 2^-24.
        tiny = self.sub(self.bits(self.add(self.bits(size, value.type), 0.5), size.type), 0x3F000000)
        small = self.ir.icmp_unsigned("<", size, self.const(size.type, 113 << 23))
        found = self.ir.select(small, tiny, self.shr(normal, 13))
        large = self.ir.icmp_unsigned(">=", size, self.const(size.type, 143 << 23))
        found = self.ir.select(large, self.const(size.type, 0x7C00), found)
        nan = self.bit_or(self.bit_and(self.shr(size, 13), 0x3FF), 0x7E00)
        found = self.ir.select(self.ir.fcmp_ordered("ord", value, value), found, nan)
        found = self.bit_or(found, self.shr(self.bit_and(wide, 0x80000000), 16))
        return self.ir.trunc(found, like(value.type, I16))

    # -- look-ups --

    def quick_lookup(self, n: int) -> bool:
        """Whether `lookup` in `n` lanes is one instruction, cheaper than masking and converting an
        integer."""
        return (n == 16 and self.target.has("avx512f")) or (n == 8 and self.target.has("avx512vl"))

    def lookup(self, table: Sequence[int] | Value, index: Value) -> Value:
        """f32 vector of `table[index % 16]`: 16 integers that fit in 8 bits, indices as i32 lanes.

        Where `quick_lookup(16)`, and there only, the table may also be a vector of any 16 floats.
        """
        n, target, floats = lanes_of(index), self.target, self.vec(F32, lanes_of(index))
        if n == 16 and target.has("avx512f"):
            entries = table if isinstance(table, ir.Value) else self.const(floats, table)
            return self.intrinsic("llvm.x86.avx512.permvar.sf.512", floats, [entries, index])
        assert not isinstance(table, ir.Value), "a table of run-time values needs AVX-512"
        if n == 8 and target.has("avx512vl"):
            args = [self.const(floats, table[:8]), index, self.const(floats, table[8:])]
            return self.intrinsic("llvm.x86.avx512.vpermi2var.ps.256", floats, args)
        index = self.bit_and(index, 15)
        if n == 8 and target.has("avx2"):
            low, high = (
                self.intrinsic("llvm.x86.avx2.permps", floats, [self.const(floats, half), index])
                for half in (table[:8], table[8:])
            )
            return self.ir.select(self.ir.icmp_signed(">", index, self.const(index.type, 7)), high, low)
        if n == 4 and (target.arm or target.has("ssse3")):
            # Look up the top byte of each lane among 16 bytes, then bring it down with its sign.
            name = "llvm.aarch64.neon.tbl1.v16i8" if target.arm else "llvm.x86.ssse3.pshuf.b.128"
            bytes16 = self.vec(I8, 16)
            where = self.bits(self.shl(index, 24), bytes16)
            found = self.intrinsic(name, bytes16, [self.const(bytes16, table), where])
            return self.to_f32(self.ir.ashr(self.bits(found, index.type), self.const(index.type, 24)))
        base, out = self.table(F32, [float(v) for v in table]), self.undefined(floats)
        for i in range(n):
            one = self.ir.extract_element(index, self.i32(i))
            entry = self.load(base, F32, self.ir.zext(self.shl(one, 2), I64), align=4)
            out = self.ir.insert_element(out, entry, self.i32(i))
        return out

    def mask(self, bits: Value, n: int | None = None, first: int = 0) -> Value:
        """`<n x i1>` of the bits of an integer from bit `first` on."""
        n = n or self.lanes
        width = bits.type.width
        if self.target.has("avx512vl") and n in (8, 16, 32) and first == 0 and width == n:
            return self.bits(bits, self.vec(I1, n))
        if width < 32:  # compare in lanes as wide as those that the mask will choose between
            bits = self.ir.zext(bits, I32)
        picked = self.bit_and(self.splat(bits, n), [1 << (first + i) for i in range(n)])
        return self.ir.icmp_unsigned("!=", picked, ir.Constant(picked.type, None))
