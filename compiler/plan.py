"""From a graph to a schedule: which kernels run between which barriers, and where their results lie.

A wave is a set of kernels that do not wait for each other; threads meet between waves. Buffers share
one arena, placed by lifetime; caches, weights and outputs lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .dims import evaluate, product
from .ir import Module, Node, topological, users
from .ops import OPS, attributes

ALIGN = 64
LINE = 16  # bytes that a backend may want rows of integers to begin at a multiple of
SIZES = {"f32": 4, "i32": 4}
LEAVES = frozenset({"const", "weight", "dequant", "pack", "tokens", "position"})  # dequant and pack are made at load


@dataclass(frozen=True)
class Step:
    """One kernel call; `wave` counts barriers before it."""

    node: Node
    wave: int


@dataclass(frozen=True)
class Buffer:
    """A result in the arena: bytes from `offset`, alive in waves first to last."""

    node: Node
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """A schedule and a memory layout for steps of at most `rows` tokens."""

    module: Module
    rows: int
    steps: tuple[Step, ...]
    buffers: dict[Node, Buffer]
    arena: int

    @property
    def waves(self) -> int:
        return self.steps[-1].wave + 1 if self.steps else 0

    def report(self) -> str:
        """The arena as a table, largest buffers first."""
        total = sum(b.bytes for b in self.buffers.values())
        head = (
            f"{len(self.steps)} kernels in {self.waves} waves; arena {_size(self.arena)} "
            f"for {len(self.buffers)} buffers of {_size(total)}, {self.rows} tokens a step"
        )
        largest = sorted(self.buffers.values(), key=lambda b: -b.bytes)[:8]
        lines = [f"  {_size(b.bytes):>10}  waves {b.first}-{b.last}  {self._name(b.node)}" for b in largest]
        return "\n".join([head, *lines])

    def _name(self, item: Node) -> str:
        name = self.module.names.get(item)
        return f"%{name} : {item.type}" if name else f"{item.op} : {item.type}"


def is_view(item: Node) -> bool:
    return "view" in OPS[item.op].traits


def base(item: Node) -> Node:
    """The node whose memory a view shows."""
    while is_view(item):
        item = item.args[0]
    return item


def writes_cache(item: Node) -> Node | None:
    """The cache write a kernel ends in, or None."""
    if item.op == "cache_write":
        return item
    if item.op == "fused" and item["block"].result.op == "cache_write":
        found: Node = item["block"].result
        return found
    return None


def plan(module: Module, rows: int) -> Plan:
    """Schedules an unrolled, fused module and lays out its arena for steps of up to `rows` tokens."""
    order = [n for n in topological(module.roots) if n.op not in LEAVES and not is_view(n)]
    waves: dict[Node, int] = {}
    for item in order:
        sources = (base(arg) for arg in item.args)
        waves[item] = 1 + max((waves[s] for s in sources if s in waves), default=-1)
    steps = tuple(sorted((Step(n, waves[n]) for n in order), key=lambda s: s.wave))
    external = {base(out) for out in module.outputs[:1]} | {n for n in order if writes_cache(n)}
    lifetimes = _lifetimes(module, waves)
    buffers, arena = _place([(n, *lifetimes[n]) for n in order if n not in external], rows)
    return Plan(module, rows, steps, buffers, arena)


def _lifetimes(module: Module, waves: dict[Node, int]) -> dict[Node, tuple[int, int]]:
    """First and last wave in which each value is needed; reads through views count.

    The first output lies with the caller; the others are read from the arena when the step is over.
    """
    readers = users(module.roots)
    end, kept = max(waves.values(), default=0), {base(out) for out in module.outputs[1:]}

    def last(item: Node) -> int:
        return max((last(r) if is_view(r) else waves[r] for r in readers[item]), default=waves.get(item, 0))

    return {item: (wave, end if item in kept else max(wave, last(item))) for item, wave in waves.items()}


def _place(values: list[tuple[Node, int, int]], rows: int) -> tuple[dict[Node, Buffer], int]:
    """Largest first, each at the lowest offset where nothing alive at the same time lies."""
    sized = [(n, _align(_bytes(n, rows)), a, z) for n, a, z in values]
    placed: list[Buffer] = []
    for item, size, first, last in sorted(sized, key=lambda v: -v[1]):
        offset = 0
        for other in _alive(placed, first, last):
            if offset + size <= other.offset:
                break
            offset = max(offset, other.offset + other.bytes)
        placed.append(Buffer(item, offset, size, first, last))
    arena = max((b.offset + b.bytes for b in placed), default=0)
    return {b.node: b for b in placed}, arena


def _bytes(item: Node, rows: int) -> int:
    """What a result takes. Quantised rows lie in whole tiles, with scales and sums."""
    if item.type.dtype == "q8":
        given = attributes(quantises(item))
        count = evaluate(product(item.shape[:-1]), {"T": rows})
        padded: int = -(-count // given["tile"]) * given["tile"]
        row = quantised_bytes(evaluate(item.shape[-1], {}), given["bits"], given["block"])
        return -(-row // LINE) * LINE * padded
    return SIZES[item.type.dtype] * evaluate(product(item.shape), {"T": rows})


def quantises(item: Node) -> Node:
    """The `quantize` that a kernel of quantised rows ends in."""
    found: Node = item["block"].result if item.op == "fused" else item
    return found


def quantised_bytes(columns: int, bits: int, block: int) -> int:
    """A quantised row: its integers, a scale for each block, and of 32 and of 16 of them two numbers each, as the CPU
    keeps them; other backends keep fewer."""
    return columns * bits // 8 + 4 * (columns // block + 2 * (columns // 32 + columns // 16))


def _alive(placed: list[Buffer], first: int, last: int) -> Iterator[Buffer]:
    """Buffers whose lives overlap first to last, by offset."""
    yield from sorted((b for b in placed if b.first <= last and first <= b.last), key=lambda b: b.offset)


def _align(size: int) -> int:
    return (size + ALIGN - 1) // ALIGN * ALIGN


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
