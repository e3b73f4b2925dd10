"""Causal attention over a ring-buffered KV cache, with an online softmax (Milakov and Gimelshein 2018,
algorithm 3): a tile of positions is scored, exponentiated and multiplied with V before the next tile.

A thread works on an *item*: some tokens and some heads of one KV group, so at most a few dozen vectors of q
that share every K and V row loaded. Their state lies in the thread's scratch:

    q      [n][padded key size]      copied, so that the loops see one stride and no remainder
    out    [n][padded value size]    weighted sum of V so far
    scores [n][TILE]                 of this tile; later their exponentials
    peak, total, fade [n]            maximum and sum so far; factor that brings `out` to a new maximum
    first, last [n]                  visible positions, i64
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from llvmlite import ir

from briolette.backends.cpu.build import F32, I16, I32, I64, PTR, VOID, Build, Target, Value
from briolette.backends.cpu.kernels import split
from briolette.backends.cpu.math import exp, softcap

TILE = 64  # positions: K and V of a tile stay in L2, V of a tile and a few columns in L1
QUERIES = 32  # vectors of q in an item, where tokens are there to fill it
BLOCK = 4  # positions whose scores are computed together
LOWEST = -3.4028234663852886e38  # a maximum of nothing: finite, because it is subtracted from itself
PARAMETERS = ("q", "k", "v", "pos", "out", "scratch", "capacity", "rows", "tid", "threads")
WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Attend:
    """What an attention kernel is specialised to.

    q_stride: floats from one token's q to the next's. single: one token only, whose heads threads divide.
    """

    heads: int
    groups: int
    key_size: int
    value_size: int
    key_dtype: str
    value_dtype: str
    scale: float
    window: int | None
    softcap: float | None
    q_stride: int
    single: bool

    @property
    def share(self) -> int:
        """Query heads of a group."""
        return self.heads // self.groups

    @property
    def most_rows(self) -> int:
        """Tokens of an item."""
        return 1 if self.single else max(1, QUERIES // self.share)

    @cached_property
    def scratch(self) -> dict[str, tuple[int, int]]:
        """Where each array of scratch begins, and the bytes from one query to the next; "" is the end."""
        sizes = {"q": _padded(self.key_size), "out": _padded(self.value_size), "scores": TILE}
        strides = {name: 4 * n for name, n in sizes.items()}
        strides |= {"peak": 4, "total": 4, "fade": 4, "first": 8, "last": 8}
        places, end, n = {}, 0, self.most_rows * self.share
        for name, stride in strides.items():
            places[name] = (end, stride)
            end += -(-stride * n // 64) * 64
        return {**places, "": (end, 0)}


def _padded(n: int) -> int:
    """Up to whole vectors of the widest target."""
    return -(-n // 16) * 16


def scratch_bytes(spec: Attend) -> int:
    """Bytes of scratch that a thread needs (64-aligned is best): the same for every context length."""
    return spec.scratch[""][0]


def emit_attend(module: ir.Module, target: Target, name: str, spec: Attend) -> ir.Function:
    """`void name(ptr q, k, v, pos, out, scratch, i64 capacity, rows, tid, threads)`

    q: f32 [rows, heads, key_size], rows `q_stride` apart. k: [groups, capacity, key_size], v: [groups,
    capacity, value_size], position p in slot p % capacity. pos: i32 [rows], in any order. out: f32 [rows,
    heads, value_size]. scratch: `scratch_bytes` of this thread's own. Threads write disjoint parts of out.
    Slots of all positions from the lowest to the highest that a row sees must hold finite numbers, even those
    that no row sees (there are such only where `pos` has gaps). The rest of the ring is not read.
    """
    function = ir.Function(module, ir.FunctionType(VOID, [PTR] * 6 + [I64] * 4), name)
    for argument, label in zip(function.args, PARAMETERS, strict=True):
        argument.name = label
    b = Build(ir.IRBuilder(function.append_basic_block()), target)
    kernel = _Kernel(b, spec, *function.args[:7])
    rows, tid, threads = function.args[7:]
    if spec.single:
        kernel.divide_heads(tid, threads)
    else:
        kernel.divide_rows(rows, tid, threads)
    b.ir.ret_void()
    return function


class _Row:
    """Rows of `size` elements of `dtype`, read as f32 vectors, the last one filled up with zeros."""

    def __init__(self, b: Build, dtype: str, size: int):
        self.b, self.dtype, self.lanes = b, dtype, b.lanes
        self.width, self.stride = WIDTHS[dtype], WIDTHS[dtype] * size
        self.whole, self.tail = divmod(size, b.lanes)
        self.stored = F32 if dtype == "f32" else I16

    def load(self, row: Value, index: int | Value, partial: bool = False) -> Value:
        """Vector number `index` of a row."""
        b = self.b
        if isinstance(index, int):
            at: int | Value = index * self.lanes * self.width
        else:
            at = b.mul(index, self.lanes * self.width)
        raw = self._partial(b.at(row, at)) if partial else b.load(row, b.vec(self.stored), at)
        if self.dtype == "f32":
            return raw
        return b.f16_to_f32(raw) if self.dtype == "f16" else b.bf16_to_f32(raw)

    def _partial(self, ptr: Value) -> Value:
        """`tail` elements, put together from loads of powers of two: nothing beyond them is touched."""
        b, lanes, at = self.b, self.lanes, 0
        vector: Value = ir.Constant(b.vec(self.stored), None)
        for n in pieces(self.tail):
            if n == 1:
                one = b.load(ptr, self.stored, at * self.width)
                vector = b.ir.insert_element(vector, one, b.i32(at))
            else:
                part = b.load(ptr, b.vec(self.stored, n), at * self.width)
                part = b.shuffle(part, [i % n for i in range(lanes)])
                mask = [lanes + i - at if at <= i < at + n else i for i in range(lanes)]
                vector = b.shuffle(vector, mask, part)
            at += n
        return vector

    def store(self, vector: Value, row: Value, index: int | Value, partial: bool = False) -> None:
        """The same place of a row of f32."""
        b = self.b
        ptr = b.at(row, b.mul(b.i64(index) if isinstance(index, int) else index, 4 * self.lanes))
        if not partial:
            return b.store(vector, ptr)
        at = 0
        for n in pieces(self.tail):
            part = b.slice(vector, at, n) if n > 1 else b.ir.extract_element(vector, b.i32(at))
            b.store(part, ptr, 4 * at)
            at += n

    def each(self, body: Callable[[int | Value, bool], None]) -> None:
        """`body(index, partial)` for every vector of a row."""
        self.b.loop(0, self.whole, 1, [], lambda i, _: body(i, False))
        if self.tail:
            body(self.whole, True)


def pieces(n: int) -> list[int]:
    """n as a sum of falling powers of two."""
    return [1 << i for i in reversed(range(n.bit_length())) if n >> i & 1]


@dataclass(frozen=True)
class _Item:
    """n = rows * heads queries, ordered so: heads from `head` on, of `group`, of each row from `row` on."""

    row: Value
    rows: Value
    group: Value
    head: Value
    heads: Value
    n: Value


class _Kernel:
    def __init__(
        self,
        b: Build,
        spec: Attend,
        q: Value,
        k: Value,
        v: Value,
        pos: Value,
        out: Value,
        scratch: Value,
        capacity: Value,
    ):
        self.b, self.spec, self.capacity = b, spec, capacity
        self.q, self.k, self.v, self.pos, self.out, self.scratch = q, k, v, pos, out, scratch
        self.keys = _Row(b, spec.key_dtype, spec.key_size)
        self.values = _Row(b, spec.value_dtype, spec.value_size)
        self.queries = _Row(b, "f32", spec.key_size)
        self.roomy = b.target.arm or b.target.has("avx512vl")  # 32 vector registers, not 16
        # Queries of which a block of scores, or of outputs, is accumulated in registers at once.
        most = spec.share * spec.most_rows
        self.blocks = [n for n in ((4, 2, 1) if self.roomy else (2, 1)) if n <= most]

    # -- who does what --

    def divide_heads(self, tid: Value, threads: Value) -> None:
        """One token: a thread takes adjacent heads, so that few groups are read by two threads."""
        b, share = self.b, self.spec.share
        first, last = split(b, b.i64(self.spec.heads), tid, threads)

        def turn(group: Value, _: list[Value]) -> None:
            start = b.mul(group, share)
            head = self._larger(first, start)
            heads = b.sub(self._smaller(last, b.add(start, share)), head)
            self.item(_Item(b.i64(0), b.i64(1), group, head, heads, heads))

        # The last group is that of head `last - 1`; without a head the loop must not run at all.
        stop = b.add(b.ir.udiv(b.sub(last, 1), b.i64(share)), 1)
        stop = b.ir.select(b.ir.icmp_signed("<", first, last), stop, b.i64(0))
        b.loop(b.ir.udiv(first, b.i64(share)), stop, 1, [], turn)

    def divide_rows(self, rows: Value, tid: Value, threads: Value) -> None:
        """Many tokens: items are dealt out there and back again, because later tokens see more positions."""
        b, spec = self.b, self.spec
        groups = b.i64(spec.groups)
        # A few items a thread at least, if there are so many tokens.
        fair = b.ir.udiv(b.mul(rows, groups), b.mul(threads, 4))
        size = self._larger(self._smaller(fair, b.i64(spec.most_rows)), b.i64(1))
        blocks = self._quotient_up(rows, size)
        items = b.mul(blocks, groups)

        def turn(i: Value, _: list[Value]) -> None:
            back = b.ir.icmp_unsigned("!=", b.bit_and(i, 1), b.i64(0))
            mine = b.ir.select(back, b.sub(b.sub(threads, 1), tid), tid)
            item = b.add(b.mul(i, threads), mine)
            with b.ir.if_then(b.ir.icmp_signed("<", item, items)):
                block, group = b.ir.udiv(item, groups), b.ir.urem(item, groups)
                row = b.mul(block, size)
                count = self._smaller(size, b.sub(rows, row))
                head, share = b.mul(group, spec.share), b.i64(spec.share)
                self.item(_Item(row, count, group, head, share, b.mul(count, share)))

        b.loop(0, self._quotient_up(items, threads), 1, [], turn)

    # -- an item --

    def item(self, item: _Item) -> None:
        b = self.b
        low, high = self.gather(item)
        stop, capacity = b.add(high, 1), self.capacity
        stride = b.mul(item.group, capacity)

        def lap(start: Value, _: list[Value]) -> None:
            """The ring once round: positions start .. start + capacity lie in slots 0 .. capacity."""

            def tile(p: Value, _: list[Value]) -> None:
                slot = b.add(stride, b.sub(p, start))
                count = self._smaller(b.sub(end, p), b.i64(TILE))
                keys = b.at(self.k, b.mul(slot, self.keys.stride))
                values = b.at(self.v, b.mul(slot, self.values.stride))
                self.score(item, keys, values, count)
                self.soften(item, p, count)
                self.accumulate(item, values, count, b.at(keys, TILE * self.keys.stride))

            end = self._smaller(stop, b.add(start, capacity))
            b.loop(self._larger(low, start), end, TILE, [], tile)

        b.loop(b.sub(low, b.ir.urem(low, capacity)), stop, capacity, [], lap)
        self.finish(item)

    def gather(self, item: _Item) -> list[Value]:
        """Copy q into scratch and start every query; the lowest and the highest position seen."""
        b, spec = self.b, self.spec

        def token(r: Value, seen: list[Value]) -> list[Value]:
            at = b.add(item.row, r)
            last = b.ir.sext(b.load(self.pos, I32, b.mul(at, 4), align=4), I64)
            first = b.i64(0)
            if spec.window is not None:
                first = self._larger(b.sub(last, spec.window - 1), first)
            source = b.at(self.q, b.mul(at, 4 * spec.q_stride))

            def head(h: Value, _: list[Value]) -> None:
                i = b.add(b.mul(r, item.heads), h)
                given = b.at(source, b.mul(b.add(item.head, h), self.queries.stride))
                copy, out = self.place("q", i), self.place("out", i)
                row = self.queries
                row.each(lambda j, partial: row.store(row.load(given, j, partial), copy, j))
                self.values.each(lambda j, partial: self.values.store(b.zeros(), out, j))
                b.store(b.f32(LOWEST), self.place("peak", i), align=4)
                b.store(b.f32(0.0), self.place("total", i), align=4)
                b.store(first, self.place("first", i), align=8)
                b.store(last, self.place("last", i), align=8)

            b.loop(0, item.heads, 1, [], head)
            return [self._smaller(seen[0], first), self._larger(seen[1], last)]

        return b.loop(0, item.rows, 1, [b.i64((1 << 63) - 1), b.i64(-1)], token)

    def score(self, item: _Item, keys: Value, values: Value, count: Value) -> None:
        """scores = q K^T of a tile. Beyond `count`, up to whole blocks, positions repeat the last one."""
        b = self.b

        def block(j: Value, _: list[Value]) -> None:
            last = b.sub(count, 1)
            coming = b.at(values, b.mul(j, self.values.stride))
            rows = [b.at(keys, b.mul(self._smaller(b.add(j, i), last), self.keys.stride)) for i in range(BLOCK)]

            def some(q: Value, n: int) -> None:
                starts = [self.place("q", b.add(q, i)) for i in range(n)]

                def products(d: int | Value, sums: list[Value], partial: bool = False) -> list[Value]:
                    self.ask(coming, d, BLOCK * self.values.stride, self.keys.whole)
                    ks = [self.keys.load(row, d, partial) for row in rows]
                    sums = list(sums)
                    for i, start in enumerate(starts):
                        x = self.queries.load(start, d)
                        for c, key in enumerate(ks):
                            sums[i * BLOCK + c] = b.fma(x, key, sums[i * BLOCK + c])
                    return sums

                sums = b.loop(0, self.keys.whole, 1, [b.zeros()] * (n * BLOCK), products)
                if self.keys.tail:
                    sums = products(self.keys.whole, sums, True)
                for i in range(n):
                    four = reduce_four(b, sums[i * BLOCK : (i + 1) * BLOCK])
                    b.store(four, b.at(self.place("scores", b.add(q, i)), b.mul(j, 4)))

            self.in_blocks(item.n, some)

        b.loop(0, count, BLOCK, [], block)

    def soften(self, item: _Item, p: Value, count: Value) -> None:
        """Scores of a tile that starts at position p become exponentials, relative to the new maximum."""
        b, spec, lanes = self.b, self.spec, self.b.lanes
        counting = b.const(b.vec(I32), list(range(lanes)))

        def query(q: Value, _: list[Value]) -> None:
            scores = self.place("scores", q)
            first = self._larger(b.sub(b.load(self.place("first", q), I64), p), b.i64(0))
            last = self._smaller(b.add(b.sub(b.load(self.place("last", q), I64), p), 1), count)
            first, last = (b.splat(b.ir.trunc(v, I32)) for v in (first, last))

            def scale(j: Value, carried: list[Value]) -> list[Value]:
                at = b.mul(j, 4)
                s = b.mul(b.load(scores, b.vec(F32), at), spec.scale)
                if spec.softcap is not None:
                    s = softcap(b, s, spec.softcap)
                index = b.add(counting, b.splat(b.ir.trunc(j, I32)))
                seen = b.ir.and_(b.ir.icmp_signed(">=", index, first), b.ir.icmp_signed("<", index, last))
                s = b.ir.select(seen, s, b.splat(float("-inf")))
                b.store(s, scores, at)
                return [b.max(s, carried[0])]

            (peaks,) = b.loop(0, count, lanes, [b.splat(LOWEST)], scale)
            before = b.load(self.place("peak", q), F32)
            peak = b.max(b.reduce_max(peaks), before)
            fade = exp(b, b.sub(before, peak))
            top = b.splat(peak)

            def power(j: Value, carried: list[Value]) -> list[Value]:
                at = b.mul(j, 4)
                s = b.sub(b.load(scores, b.vec(F32), at), top)
                # What would be subnormal counts for nothing, but would be slow to multiply with.
                e = b.ir.select(b.ir.fcmp_ordered(">", s, b.splat(-87.0)), exp(b, s), b.zeros())
                b.store(e, scores, at)
                return [b.add(carried[0], e)]

            (sums,) = b.loop(0, count, lanes, [b.zeros()], power)
            total = b.fma(b.load(self.place("total", q), F32), fade, b.reduce_add(sums))
            for name, value in (("peak", peak), ("fade", fade), ("total", total)):
                b.store(value, self.place(name, q), align=4)

        b.loop(0, item.n, 1, [], query)

    def accumulate(self, item: _Item, values: Value, count: Value, coming: Value) -> None:
        """out = out * fade + exponentials V, as many columns at a time as stay in registers."""
        b, row = self.b, self.values

        def some_columns(e: Value, width: int, partial: bool = False) -> None:
            def some(q: Value, n: int) -> None:
                outs = [self.place("out", b.add(q, i)) for i in range(n)]
                weights = [self.place("scores", b.add(q, i)) for i in range(n)]
                fades = [b.splat(b.load(self.place("fade", b.add(q, i)), F32)) for i in range(n)]

                def add(j: Value, sums: list[Value]) -> list[Value]:
                    at = b.at(values, b.mul(j, row.stride))
                    self.ask(b.at(coming, b.mul(j, self.keys.stride)), e, self.keys.stride, row.whole, width)
                    ps = [b.splat(b.load(w, F32, b.mul(j, 4))) for w in weights]
                    sums = list(sums)
                    for c in range(width):
                        v = row.load(at, b.add(e, c), partial)
                        for i, p in enumerate(ps):
                            sums[i * width + c] = b.fma(p, v, sums[i * width + c])
                    return sums

                # The tile is summed by itself: fewer roundings than adding each position to the whole.
                tile = b.loop(0, count, 1, [b.zeros()] * (n * width), add)
                columns = [b.mul(b.add(e, c), 4 * b.lanes) for c in range(width)]
                places = [b.at(out, column) for out in outs for column in columns]
                for i, (place, new) in enumerate(zip(places, tile, strict=True)):
                    old = b.load(place, b.vec(F32))
                    b.store(b.fma(old, fades[i // width], new), place)

            self.in_blocks(item.n, some)

        for first, last, width in _columns(row.whole, 4):
            b.loop(first, last, width, [], lambda e, _, width=width: some_columns(e, width))
        if row.tail:
            some_columns(b.i64(row.whole), 1, True)

    def finish(self, item: _Item) -> None:
        """out / total, to where it belongs."""
        b, spec = self.b, self.spec

        def token(r: Value, _: list[Value]) -> None:
            def head(h: Value, _: list[Value]) -> None:
                i = b.add(b.mul(r, item.heads), h)
                total = b.splat(b.load(self.place("total", i), F32))
                at = b.add(b.mul(b.add(item.row, r), spec.heads), b.add(item.head, h))
                to, source = b.at(self.out, b.mul(at, 4 * spec.value_size)), self.place("out", i)

                def vector(j: int | Value, partial: bool) -> None:
                    at = b.mul(b.i64(j) if isinstance(j, int) else j, 4 * b.lanes)
                    self.values.store(b.div(b.load(source, b.vec(F32), at), total), to, j, partial)

                self.values.each(vector)

            b.loop(0, item.heads, 1, [], head)

        b.loop(0, item.rows, 1, [], token)

    # -- helpers --

    def ask(self, ptr: Value, part: int | Value, size: int, parts: int, count: int = 1) -> None:
        """Prefetch `count` of the `parts` of `size` bytes. A single token uses each byte once, from memory:
        V had better arrive while scores are made, and the next tile's K while V is multiplied."""
        if self.spec.single and parts and not isinstance(part, int):
            span = -(-size // parts)
            self.b.prefetch(ptr, self.b.mul(part, span), span * count)

    def in_blocks(self, n: Value, emit: Callable[[Value, int], None]) -> None:
        """`emit(first, count)` for all of n queries: as many as possible in blocks of the largest count."""
        b, start = self.b, self.b.i64(0)
        for count in self.blocks:
            stop = n if count == 1 else b.bit_and(n, -count)
            b.loop(start, stop, count, [], lambda q, _, count=count: emit(q, count))
            start = stop

    def place(self, name: str, query: Value) -> Value:
        """A query's part of an array in scratch."""
        offset, stride = self.spec.scratch[name]
        return self.b.at(self.b.at(self.scratch, offset), self.b.mul(query, stride))

    def _smaller(self, x: Value, y: Value) -> Value:
        return self.b.ir.select(self.b.ir.icmp_signed("<", x, y), x, y)

    def _larger(self, x: Value, y: Value) -> Value:
        return self.b.ir.select(self.b.ir.icmp_signed(">", x, y), x, y)

    def _quotient_up(self, x: Value, y: Value) -> Value:
        return self.b.ir.udiv(self.b.sub(self.b.add(x, y), 1), y)


def _columns(n: int, most: int) -> list[tuple[int, int, int]]:
    """(first, last, width): n vectors in as few parts as `most` allows, equal or the wider ones first."""
    parts = -(-n // most)
    if parts == 0:
        return []
    width, wide = divmod(n, parts)
    middle = wide * (width + 1)
    return [r for r in ((0, middle, width + 1), (middle, n, width)) if r[0] < r[1]]


def reduce_four(b: Build, vectors: Sequence[Value]) -> Value:
    """The sums of the lanes of four vectors, as one vector of four: shuffles within 128 bits come first."""

    def pick(x: Value, y: Value, which: Sequence[int]) -> Value:
        """From every four lanes of x (0 to 3) and y (4 to 7)."""
        n = x.type.count
        lanes = [base + (i if i < 4 else n + i - 4) for base in range(0, n, 4) for i in which]
        return b.shuffle(x, lanes, y)

    def pair(x: Value, y: Value, low: Sequence[int], high: Sequence[int]) -> Value:
        return b.add(pick(x, y, low), pick(x, y, high))

    w, x, y, z = vectors
    wx, yz = (pair(*two, (0, 4, 1, 5), (2, 6, 3, 7)) for two in ((w, x), (y, z)))
    total = pair(wx, yz, (0, 1, 4, 5), (2, 3, 6, 7))
    while (n := total.type.count // 2) >= 4:
        total = b.add(b.slice(total, 0, n), b.slice(total, n, n))
    return total
