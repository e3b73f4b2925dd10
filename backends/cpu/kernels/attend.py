"""Causal attention over ring-buffered KV caches, with an online softmax (Milakov and Gimelshein 2018, algorithm 3):
a tile of positions is scored, exponentiated and multiplied with V before the next tile.

Each row (a token of a step) belongs to a sequence, whose part of the cache it sees. There are two kernels, for two
shapes of work, and each leaves the other's rows alone:

* `attend_one`: rows whose neighbours are of other sequences, as in decoding. K and V are read once, from memory.
* `attend_many`: runs of rows of one sequence, as in a prompt. K and V of a tile serve many queries.

A plane of K or V holds numbers, or codes (`cpu.coded`), of which never more than a tile is decoded. Where there are
*near* planes, a row at position p reads positions j < sink and j > p - recent there, all others from the main planes.

Where K and V are kept once, K's plane has the first dimensions of keys, and those of V from there on are the others.

Here is what the kernels share: what they are specialised to, rows of a cache, who sees what, and the way round a ring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llvmlite import ir

from briolette.compiler.ir import Node
from briolette.compiler.plan import base, writes_cache
from briolette.compiler.views import heads_lie_together, view_of

from ..build import F32, I16, I32, I64, PTR, VOID, Build, Target, Value
from ..coded import coded
from ..math import exp_normal
from . import larger, smaller
from .codes import Codes

TILE = 64  # positions: K and V of a tile stay in L2
INTEGER_TILE = 256  # of products in integers: what is done once for a tile weighs more
LOWEST = -3.4028234663852886e38  # a maximum of nothing: finite, because it is subtracted from itself
PARAMETERS = ("q", "k", "v", "pos", "slots", "out", "scratch", "capacity", "rows", "tid", "threads")
NEAR = ("near_k", "near_v", "near_capacity")
WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Attend:
    """What an attention kernel is specialised to. A dtype may be a codec's name. q_stride: floats from one token's q to
    the next's. sink, recent: how many positions a row reads from the near planes. shared: whether keys go on in V, from
    dimension key_size; queries are then of value_size. query_bits, weight_bits: of products in integers with K and V in
    codes, for rows alone; 0: in f32."""

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
    sink: int = 0
    recent: int = 0
    near_dtype: str = "bf16"
    shared: bool = False
    query_bits: int = 0
    weight_bits: int = 0

    @property
    def query_size(self) -> int:
        """Dimensions of a query, and of a whole key."""
        return self.value_size if self.shared else self.key_size

    @property
    def share(self) -> int:
        """Query heads of a group."""
        return self.heads // self.groups

    @property
    def tile(self) -> int:
        """Positions of a row alone that are worked on at a time."""
        return INTEGER_TILE if self.query_bits or self.weight_bits else TILE

    @property
    def least(self) -> int:
        """Positions of the smallest part, which all others are multiples of: several threads should get some."""
        return min(128, self.tile)

    @property
    def near(self) -> bool:
        """Whether there are near planes."""
        return self.sink + self.recent > 0

    @property
    def main(self) -> bool:
        """Whether anything is read from the main planes."""
        return self.window is None or self.window > self.recent


def spec_of(item: Node) -> Attend:
    """The attention of a node: shapes, cache element types, how queries lie."""
    q, k, v, _, *near = item.args
    view = view_of(q)
    assert heads_lie_together(view)
    sizes = (q.shape[1], k.shape[1], k.shape[2], v.shape[2])
    assert all(isinstance(size, int) for size in sizes)
    dtypes = [write.type.dtype for x in (k, v, *near) if (write := writes_cache(base(x))) is not None]
    how = (item["scale"], item.get("window"), item.get("softcap"), view.strides[0])
    near_of = (item.get("sink", 0), item.get("recent", 0))
    bits = {name: item.get(name, 0) for name in ("query_bits", "weight_bits")}
    spec = Attend(*sizes, *dtypes[:2], *how, *near_of, shared=bool(item.get("shared")), **bits)
    assert spec.near == bool(near)
    assert spec.query_size == q.shape[2]
    assert all(dtype == spec.near_dtype for dtype in dtypes[2:])
    return spec


@dataclass(frozen=True)
class Array:
    """An array in scratch: where it begins, and the bytes from one of its rows to the next."""

    offset: int
    stride: int

    def row(self, b: Build, memory: Value, index: Value) -> Value:
        """Where a row lies, in the memory that has the array."""
        return b.at(b.at(memory, self.offset), b.mul(index, self.stride))


def arrays(sizes: Mapping[str, tuple[int, int]]) -> tuple[dict[str, Array], int]:
    """Arrays of so many rows and bytes a row, one after another; and the bytes of them all."""
    places, end = {}, 0
    for name, (rows, stride) in sizes.items():
        places[name] = Array(end, stride)
        end += -(-rows * stride // 64) * 64
    return places, end


def padded(n: int) -> int:
    """Up to whole vectors of the widest target."""
    return -(-n // 16) * 16


def declare(module: ir.Module, target: Target, name: str, spec: Attend, *more: str) -> tuple[ir.Function, Build]:
    """`void name(ptr q, k, v, pos, slots, out, scratch, i64 capacity, rows, tid, threads, [near], ptr more...)`
    where [near], for specs that have it, is `ptr near_k, near_v, i64 near_capacity`.

    q: f32 [rows, heads, query_size], rows `q_stride` apart. k: [slots, groups, capacity, key_size], v: [slots, groups,
    capacity, value_size], position p at p % capacity; or rings of codes, as `cpu.coded` tells, and then capacity is a
    multiple of 16. near_k, near_v: as k and v with near_capacity positions, p at p if p < sink, else at
    sink + (p - sink) % (near_capacity - sink). pos: i32 [rows], in any order. slots: i32 [rows], the sequence
    that each row belongs to. out: f32 [rows, heads, value_size]. scratch: this thread's own. Threads write disjoint
    parts of out. All positions from the lowest to the highest that a row sees must hold finite numbers, even those
    that no row sees (there are such only where `pos` has gaps). The rest of the ring has no influence.
    """
    near = NEAR if spec.near else ()
    types = [PTR] * 7 + [I64] * 4 + [PTR, PTR, I64][: len(near)] + [PTR] * len(more)
    function = ir.Function(module, ir.FunctionType(VOID, types), name)
    for argument, label in zip(function.args, (*PARAMETERS, *near, *more), strict=True):
        argument.name = label
    return function, Build(ir.IRBuilder(function.append_basic_block()), target)


class Row:
    """Rows of `size` elements of `dtype`, read as f32 vectors, the last one filled up with zeros."""

    def __init__(self, b: Build, dtype: str, size: int):
        self.b, self.dtype, self.size, self.lanes = b, dtype, size, b.lanes
        self.width, self.stride = WIDTHS[dtype], WIDTHS[dtype] * size
        self.whole, self.tail = divmod(size, b.lanes)
        self.stored = F32 if dtype == "f32" else I16

    def ring_bytes(self, capacity: Value) -> Value:
        return self.b.mul(capacity, self.stride)

    def at(self, ring: Value, place: Value) -> Value:
        """The row at a place of a ring."""
        return self.b.at(ring, self.b.mul(place, self.stride))

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


Plane: TypeAlias = Row | Codes


def plane(b: Build, dtype: str, size: int) -> Plane:
    layout = coded(dtype, size)
    return Row(b, dtype, size) if layout is None else Codes(b, layout)


@dataclass(frozen=True)
class Ring:
    """Position p lies at place origin + (p - origin) % length."""

    origin: Value
    length: Value


@dataclass(frozen=True)
class Planes:
    """K and V of all sequences and groups, where they begin, and how many positions they hold."""

    keys: Plane
    values: Plane
    k: Value
    v: Value
    capacity: Value


class Kernel:
    """The arguments of an attention kernel, and what follows from them."""

    def __init__(self, b: Build, spec: Attend, args: tuple[Value, ...], places: Mapping[str, Array]):
        self.b, self.spec, self.places = b, spec, places
        self.q, k, v, self.pos, self.slots, self.out, self.scratch = args[:7]
        capacity, self.rows, self.tid, self.threads = args[7:11]
        keys, values = plane(b, spec.key_dtype, spec.key_size), plane(b, spec.value_dtype, spec.value_size)
        self.main = Planes(keys, values, k, v, capacity)
        if spec.near:
            keys, values = (Row(b, spec.near_dtype, size) for size in (spec.key_size, spec.value_size))
            self.near = Planes(keys, values, *args[11:14])

    def place(self, name: str, row: Value) -> Value:
        """A row of an array in scratch."""
        return self.places[name].row(self.b, self.scratch, row)

    def sight(self, row: Value) -> tuple[Value, Value]:
        """The first and the last position that a row sees, i64."""
        b, window = self.b, self.spec.window
        last = b.ir.sext(b.load(self.pos, I32, b.mul(row, 4), align=4), I64)
        return b.i64(0) if window is None else larger(b, b.sub(last, window - 1), b.i64(0)), last

    def borders(self, row: Value) -> tuple[Value, Value]:
        """Whether a run of rows of one sequence begins at a row, and whether one ends with it."""
        b, end = self.b, self.b.sub(self.rows, 1)
        before, after = larger(b, b.sub(row, 1), b.i64(0)), smaller(b, b.add(row, 1), end)
        mine, previous, following = (b.load(self.slots, I32, b.mul(r, 4), align=4) for r in (row, before, after))
        begins = b.ir.or_(b.ir.icmp_signed("==", row, b.i64(0)), b.ir.icmp_signed("!=", previous, mine))
        ends = b.ir.or_(b.ir.icmp_signed("==", row, end), b.ir.icmp_signed("!=", following, mine))
        return begins, ends

    def rings(self, planes: Planes, row: Value, group: Value) -> tuple[Value, Value]:
        """Where the rings of K and V of a row's sequence and a group begin."""
        b = self.b
        slot = b.ir.sext(b.load(self.slots, I32, b.mul(row, 4), align=4), I64)
        index = b.add(b.mul(slot, self.spec.groups), group)
        k, v = (b.mul(index, side.ring_bytes(planes.capacity)) for side in (planes.keys, planes.values))
        return b.at(planes.k, k), b.at(planes.v, v)

    def main_ring(self) -> Ring:
        return Ring(self.b.i64(0), self.main.capacity)

    def main_stretch(self, low: Value, stop: Value, last: Value) -> tuple[Value, Value]:
        """Of positions low to stop (exclusive) those in the main planes, for rows of which `last` is the last one."""
        b, spec = self.b, self.spec
        if not spec.near:
            return low, stop
        return larger(b, low, b.i64(spec.sink)), smaller(b, stop, b.sub(last, spec.recent - 1))

    def each_near(
        self, low: Value, stop: Value, last: Value, body: Callable[[Value, Value, Value, Ring], None]
    ) -> None:
        """`body(which, low, stop, ring)` for those in the near planes, for rows of which `last` is the first one:
        the sinks (0) and the recent ones (1)."""
        b, sink = self.b, self.b.i64(self.spec.sink)
        recent = larger(b, larger(b, low, sink), b.sub(last, self.spec.recent - 1))
        sinks = (low, smaller(b, stop, sink), b.i64(0), sink)
        others = (recent, stop, sink, b.sub(self.near.capacity, sink))

        def kind(which: Value, _: list[Value]) -> None:
            is_sinks = b.ir.icmp_signed("==", which, b.i64(0))
            first, end, origin, length = (b.ir.select(is_sinks, *pair) for pair in zip(sinks, others, strict=True))
            body(which, first, end, Ring(origin, length))

        b.loop(0 if self.spec.sink else 1, 2 if self.spec.recent else 1, 1, [], kind)

    def tiles(
        self, low: Value, stop: Value, ring: Ring, length: int, body: Callable[[Value, Value, Value], None]
    ) -> None:
        """`body(position, place in the ring, count)` for positions low to stop (exclusive), a tile at a time.

        Tiles end at multiples of `length`, so that the same positions are summed up together whatever else an item has.
        """
        b = self.b

        def lap(start: Value, _: list[Value]) -> None:
            """The ring once round: positions from `start` on lie in places from the origin on."""

            def tile(whole: Value, _: list[Value]) -> None:
                p = larger(b, whole, first)
                place = b.add(ring.origin, b.sub(p, start))
                body(p, place, b.sub(smaller(b, b.add(whole, length), end), p))

            first, end = larger(b, low, start), smaller(b, stop, b.add(start, ring.length))
            b.loop(b.bit_and(first, -length), end, length, [], tile)

        with b.ir.if_then(b.ir.icmp_signed("<", low, stop)):
            start = b.sub(low, b.ir.urem(b.sub(low, ring.origin), ring.length))
            b.loop(start, stop, ring.length, [], lap)


def weight(b: Build, s: Value) -> Value:
    """The exponentials of scores from which their maximum was taken. What would be subnormal counts for nothing, but
    would be slow to multiply with; NaN stays."""
    return b.ir.select(b.ir.fcmp_unordered(">", s, b.const(s.type, -87.0)), exp_normal(b, s), b.const(s.type, 0.0))


def transposed(b: Build, vectors: Sequence[Value]) -> list[Value]:
    """A square of as many vectors as each has lanes, turned over: squares of half the size change places."""
    rows, n = list(vectors), len(vectors)
    half = n // 2
    while half:
        for i in (i for i in range(n) if not i & half):
            x, y = rows[i], rows[i + half]
            rows[i] = b.shuffle(x, [n + k - half if k & half else k for k in range(n)], y)
            rows[i + half] = b.shuffle(x, [n + k if k & half else k + half for k in range(n)], y)
        half //= 2
    return rows
