"""What the kernels of a decode step read and write, from the launch plan; and what the program needs at the least.

Weights and caches are counted by the launches that take them. What several blocks of one launch read, such as the
activations of a product, counts once: after the first read it is in the device's second-level cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from briolette.compiler.cost import Cost, Costs
from briolette.compiler.dims import evaluate
from briolette.compiler.ir import Node
from briolette.compiler.ops import attributes
from briolette.compiler.plan import Plan, base, quantises, writes_cache
from briolette.compiler.views import view_of

from ..formats import element_bytes
from .attend import scratch_bytes
from .emit import Emitter, Layout, Made, joined
from .planes import DevicePlane
from .source import Kernel, Together
from .steps import Argument, Launch, blocks, known, row_stride

ONE = {"T": 1}  # token in a step
MERGE = "attend_merge"  # the kernel that puts parts of attention together


@dataclass(frozen=True)
class Read:
    """A part of a stored weight that a launch reads: by its number in the tables, from an offset on, in bytes. A row
    that a token is looked up in begins somewhere in it."""

    weight: Argument
    bytes: int
    looked_up: bool = False


@dataclass(frozen=True)
class Use:
    """One launch in a step: the nodes that it computes, and what is read and written: of weights, of the cache, of
    values, in bytes."""

    nodes: tuple[Node, ...]
    families: tuple[str, ...]  # of the kernels that are joined in it
    kernel: Kernel | Together
    launch: Launch
    reads: tuple[Read, ...]
    cache: int
    values: int

    @property
    def grid(self) -> tuple[int, int, int]:
        x, y, z = (blocks(size, ONE) for size in self.launch.grid)
        return x, y, z

    @property
    def weights(self) -> int:
        return sum(read.bytes for read in self.reads)

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.values


def uses(plan: Plan, layout: Layout, depth: int) -> list[Use]:
    """The launches of a decode step whose token stands at position `depth`, in order."""
    assert plan.rows == 1, "only a step of one token reads each of its weights once"
    emitter = Emitter(plan, layout, tiles=True)
    found = []
    for parts in emitter.parts():
        launch, kernel = joined([made for _, made in parts])
        each = [_moved(item, made, emitter, depth) for item, made in parts]
        reads = tuple(read for moved in each for read in moved[0])
        families = tuple(kernel.family for _, (_, kernel) in parts)
        nodes = tuple(item for item, _ in parts)
        cache, values = sum(moved[1] for moved in each), sum(moved[2] for moved in each)
        found.append(Use(nodes, families, kernel, launch, reads, cache, values))
    return found


def needed(plan: Plan, depth: int) -> Cost:
    """What the op table says that such a step must read: weights, and the cache up to its token."""
    return Costs(plan.module, element_bytes, 1, depth + 1).total()


def _moved(item: Node, made: Made, emitter: Emitter, depth: int) -> tuple[tuple[Read, ...], int, int]:
    """What one kernel reads of weights, its bytes of the cache, and its bytes of values."""
    launch, kernel = made
    values = _values(item)
    if item.op != "attend":
        return tuple(_reads(item, launch, emitter)), _written(item, emitter.layout), values
    kept, out = scratch_bytes(item), _size(item)
    if kernel.family == MERGE:
        return (), 0, kept + out
    return (), _seen(item, emitter.layout, depth), values - out + kept


def _reads(item: Node, launch: Launch, emitter: Emitter) -> Iterator[Read]:
    """The weights among a node's operands, as its launch reads them."""
    looked_up = _looked_up(item)
    experts = _experts(item)
    for arg in dict.fromkeys(item.args):
        source = base(arg)
        if source.op not in ("weight", "dequant"):
            continue
        if arg in looked_up:
            yield Read(_argument(arg, looked_up[arg], emitter), row_stride(arg) * _count(looked_up[arg]), True)
            continue
        size = _size(arg) if source.type.dtype == "f32" else _count(arg) // known(arg.shape[-1]) * row_stride(arg)
        rows = blocks(launch.grid[1], ONE)
        if arg in experts:  # each pair of a token and an expert reads that expert's
            yield Read(emitter.pointer(arg), size // known(arg.shape[0]) * rows, True)
        else:
            yield Read(emitter.pointer(arg), size * (rows if _is_product(item) else 1))


def _argument(table: Node, ids: Node, emitter: Emitter) -> Argument:
    return emitter.staged(table, ids) or emitter.pointer(table)


def _is_product(item: Node) -> bool:
    return item.op == "fused" and item["family"] != "rows"


def _inside(item: Node) -> tuple[list[Node], dict[Node, Node]]:
    """The nodes of a fused block, and what its parameters are outside."""
    if item.op != "fused":
        return [], {}
    block = item["block"]
    return list(block.order), dict(zip(block.params, item.args, strict=True))


def _looked_up(item: Node) -> dict[Node, Node]:
    """The tables among operands, and the ids that rows are looked up by."""
    inside, outside = _inside(item)
    return {outside[n.args[0]]: outside[n.args[1]] for n in inside if n.op == "embed"}


def _experts(item: Node) -> set[Node]:
    inside, outside = _inside(item)
    return {outside[n.args[1]] for n in inside if n.op == "expert_linear"}


def _values(item: Node) -> int:
    """Bytes of values that are read and written, each once."""
    given = [arg for arg in dict.fromkeys(item.args) if base(arg).op not in ("weight", "dequant", "const")]
    written = [] if writes_cache(item) is not None else [item]
    return sum(_size(n) for n in [*given, *written] if writes_cache(base(n)) is None)


def _size(item: Node) -> int:
    """Bytes of a value, or of an f32 weight."""
    if item.type.dtype == "q8":
        given, columns = attributes(quantises(base(item))), known(item.shape[-1])
        row = columns * (given["bits"] // 8) + 4 * (columns // given["block"] + columns // 16)
        return _count(item) // columns * int(-(-row // 16) * 16)
    return 4 * _count(item)


def _count(item: Node) -> int:
    count = 1
    for dim in view_of(item).shape:
        count *= evaluate(dim, ONE)
    return count


def _plane(item: Node, layout: Layout) -> DevicePlane:
    write = writes_cache(base(item))
    assert write is not None
    return next(p for p in layout.planes if (p.slot, p.plane) == (write["slot"], write["plane"]))


def _written(item: Node, layout: Layout) -> int:
    return 0 if writes_cache(item) is None else _plane(item, layout).token_bytes


def _seen(item: Node, layout: Layout, depth: int) -> int:
    """Bytes of the cache that attention at a position reads; what K and V share, once."""
    seen = min(depth + 1, item.get("window") or depth + 1)
    near = 0
    if len(item.args) > 4:
        first = depth + 1 - seen  # that is seen
        near = min(seen, max(0, item.get("sink", 0) - first) + min(seen, item.get("recent", 0)))
    whole, close = dict.fromkeys(map(base, item.args[1:3])), dict.fromkeys(map(base, item.args[4:]))
    far = sum(_plane(n, layout).token_bytes for n in whole) * (seen - near)
    return far + sum(_plane(n, layout).token_bytes for n in close) * near
