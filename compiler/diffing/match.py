"""Which node of one graph is which node of another.

What is the very same node, or has equal structure below it, is the same at once. Of the rest, ops that read the
same tensor are anchors, and matches spread from there to neighbours, the best supported first: an op is the more
likely the same, the more of its operands and readers are. Last, an op between two matches may have become another.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..dims import Affine
from ..ir import Block, Node, topological
from ..ops import weight_below
from ..values import bare, stem

SIZES = frozenset({"type", "shape"})  # attributes that only follow from hyperparameters
BOUNDS = frozenset({"start", "stop"})  # those too, where they are numbers
_REACH = 3  # how many unmatched nodes a match may skip to reach the next
_ENOUGH = 2  # support that a match needs: one matched neighbour

Segment = Hashable


def is_leaf(item: Node) -> bool:
    """Whether a node is written where it is used: a number, a weight, a part of one."""
    return item.op == "const" or weight_below(item) is not None


def leaf_name(item: Node) -> str:
    """A leaf in short: `attn_q`, `attn_qkv[0:64]`, `0.5`."""
    match item.op:
        case "const":
            return f"{item['value']:.6g}"
        case "weight":
            return bare(item["name"])
        case "slice":
            return f"{leaf_name(item.args[0])}[{', '.join([':'] * item['axis'] + [_range(item)])}]"
    return leaf_name(item.args[0])


def _range(item: Node) -> str:
    return f"{item['start']}:{item['stop']}"


def rounds_alike(x: Any, y: Any) -> bool:
    """Whether two values are the same number once they are f32, in which programs compute."""
    return isinstance(x, float) and isinstance(y, float) and _single(x) == _single(y)


def _single(value: float) -> str:
    with np.errstate(over="ignore"):
        return repr(np.float32(value))


class Graph:
    """The nodes below some roots, each root with the part it plays; `segment` keeps apart what must not match."""

    def __init__(
        self,
        roots: Sequence[tuple[str, Node]],
        params: Sequence[Node] = (),
        segment: Mapping[Node, Segment] | None = None,
    ):
        self.nodes = topological([*(item for _, item in roots), *params])
        self.inner = [item for item in self.nodes if not is_leaf(item)]
        self.place = {item: at for at, item in enumerate(self.nodes)}
        self.params = {item: at for at, item in enumerate(params)}
        self.segment = segment or {}
        self.readers: dict[Node, list[tuple[Node | str, int]]] = {item: [] for item in self.nodes}
        for item in self.nodes:
            for at, arg in enumerate(item.args):
                self.readers[arg].append((item, at))
        for role, item in roots:
            self.readers[item].append((role, 0))


def match(a: Graph, b: Graph) -> dict[Node, Node]:
    """Inner nodes of `b` with their counterparts in `a`; no two have the same."""
    return _Matcher(a, b).run()


class _Matcher:
    def __init__(self, a: Graph, b: Graph):
        self.a, self.b = a, b
        self.of: dict[Node, Node] = {}  # b -> a
        self.back: dict[Node, Node] = {}  # a -> b
        self.heap: list[tuple[float, int, int, int]] = []

    def run(self) -> dict[Node, Node]:
        for item in self.b.inner:
            if item in self.a.place:  # nodes are interned: the very same
                self.pair(item, item)
        keys: dict[Any, int] = {}
        self.by_key(_structure(self.a, keys), _structure(self.b, keys))
        self.by_key(
            {n: k for n in self.a.inner if (k := _anchor(n))}, {n: k for n in self.b.inner if (k := _anchor(n))}
        )
        for item in list(self.of):
            self.spread(self.of[item], item)
        for old, new in self.root_pairs():
            self.propose(old, new, 0)
        self.settle()
        while self.changed_ops():
            self.settle()
        return self.of

    def by_key(self, ours: Mapping[Node, Any], theirs: Mapping[Node, Any]) -> None:
        """Matches nodes with equal keys, in order; anchors only where they are as many on both sides."""
        waiting: dict[Any, list[Node]] = {}
        for item, key in ours.items():
            if item not in self.back:
                waiting.setdefault((key, self.a.segment.get(item)), []).append(item)
        for item, key in theirs.items():
            same = waiting.get((key, self.b.segment.get(item)))
            if item not in self.of and same:
                self.pair(same.pop(0), item)

    def pair(self, old: Node, new: Node) -> None:
        self.of[new], self.back[old] = old, new

    # --- spreading -------------------------------------------------------------------------------------

    def root_pairs(self) -> Iterator[tuple[Node, Node]]:
        roles = {role: item for item, found in self.a.readers.items() for role, _ in found if isinstance(role, str)}
        for item, found in self.b.readers.items():
            for role, _ in found:
                if isinstance(role, str) and role in roles:
                    yield roles[role], item

    def spread(self, old: Node, new: Node) -> None:
        """Proposes what lies around a match: operands with operands, readers with readers."""
        for x, y in zip(old.args, new.args, strict=False):
            for near, steps in _within(x, lambda n: n.args, self.back):
                for other, more in _within(y, lambda n: n.args, self.of):
                    self.propose(near, other, steps + more)
        ours = [(n, at) for n, at in self.a.readers[old] if isinstance(n, Node)]
        theirs = [(n, at) for n, at in self.b.readers[new] if isinstance(n, Node)]
        for x, at in ours:
            for y, place in theirs:
                if at != place and x.op == y.op:
                    continue
                for near, steps in _within(x, lambda n: _readers(self.a, n), self.back):
                    for other, more in _within(y, lambda n: _readers(self.b, n), self.of):
                        self.propose(near, other, steps + more)

    def propose(self, old: Node, new: Node, distance: int) -> None:
        if old.op != new.op or old in self.back or new in self.of or is_leaf(old) or is_leaf(new):
            return
        if self.a.segment.get(old) != self.b.segment.get(new):
            return
        score = 4.0 * self.support(old, new) - distance
        heapq.heappush(self.heap, (-score, distance, self.a.place[old], self.b.place[new]))

    def settle(self) -> None:
        """Takes proposals, best first, until none is left that still holds."""
        while self.heap:
            negative, distance, x, y = heapq.heappop(self.heap)
            old, new = self.a.nodes[x], self.b.nodes[y]
            if old in self.back or new in self.of:
                continue
            score = 4.0 * self.support(old, new) - distance
            if score > -negative:  # neighbours have been matched since
                heapq.heappush(self.heap, (-score, distance, x, y))
            elif self.support(old, new) >= _ENOUGH:
                self.pair(old, new)
                self.spread(old, new)

    def support(self, old: Node, new: Node) -> int:
        """How many neighbours, attributes and tensors speak for a match, less those against."""
        found = 0
        for x, y in zip(old.args, new.args, strict=False):
            if is_leaf(x) and is_leaf(y):
                found += 1 if leaf_name(x) == leaf_name(y) else -2
            elif self.of.get(y) is x:
                found += 2
        readers = {(self.back.get(n) if isinstance(n, Node) else n, at) for n, at in self.a.readers[old]}
        found += 2 * sum(1 for n, at in self.b.readers[new] if (n, at) in readers)
        return found + (relaxed(old) == relaxed(new))

    # --- ops that became others ------------------------------------------------------------------------

    def changed_ops(self) -> bool:
        """Matches ops of different names that stand between the same operands, where matched, and the same readers."""
        before = len(self.of)
        for new in self.b.inner:
            if new in self.of or not new.args:
                continue
            for old in self.between(new):
                self.pair(old, new)
                self.spread(old, new)
                break
        return len(self.of) > before

    def between(self, new: Node) -> Iterator[Node]:
        below = [self.of[arg] for arg in new.args if arg in self.of]
        if not below:
            return
        wanted = {(self.of.get(n) if isinstance(n, Node) else n, at) for n, at in self.b.readers[new]}
        for old in _readers(self.a, below[0]):
            if old in self.back or self.a.segment.get(old) != self.b.segment.get(new):
                continue
            alike = set(below) <= set(old.args) and len(old.shape) == len(new.shape)
            if alike and wanted & set(self.a.readers[old]):
                yield old


def _within(
    start: Node, around: Callable[[Node], Iterable[Node]], matched: Mapping[Node, Node]
) -> Iterator[tuple[Node, int]]:
    """The unmatched nodes from `start` on, through unmatched ones, with the number of steps."""
    seen, edge = {start}, [start]
    for steps in range(_REACH):
        for item in edge:
            if item not in matched:
                yield item, steps
        edge = [n for item in edge if item not in matched for n in around(item) if n not in seen]
        seen.update(edge)


def _readers(graph: Graph, item: Node) -> list[Node]:
    return [n for n, _ in graph.readers[item] if isinstance(n, Node)]


# --- what nodes are recognised by ---------------------------------------------------------------------------


def relaxed(item: Node) -> tuple[Any, ...]:
    """An op with its attributes, but for sizes and the names of blocks."""
    return item.op, tuple((key, _loose(key, value)) for key, value in item.attrs if key not in SIZES)


def _loose(key: str, value: Any) -> Any:
    if isinstance(value, Block):
        return stem(value.name)
    if key == "table" or (key in BOUNDS and not isinstance(value, Affine)):
        return None
    return value.__class__, _single(value) if isinstance(value, float) else repr(value)


def _structure(graph: Graph, keys: dict[Any, int]) -> dict[Node, int]:
    """A number for each node: equal where all below is equal but for sizes. `keys` is shared by two graphs."""
    found: dict[Node, int] = {}
    for item in graph.nodes:
        key: tuple[Any, ...]
        if item in graph.params:
            key = ("param", graph.params[item])
        elif is_leaf(item):
            key = ("leaf", leaf_name(item))
        else:
            body = _body(item, keys) if item.op == "fused" else ()
            key = (relaxed(item) if not body else item.op, body, *(found[arg] for arg in item.args))
        found[item] = keys.setdefault(key, len(keys))
    return {item: key for item, key in found.items() if not is_leaf(item)}


def _body(item: Node, keys: dict[Any, int]) -> tuple[int, ...]:
    """A fused block by what it computes: its name is a number in the order of making."""
    block = item["block"]
    found = _structure(Graph([("result", block.result)], block.params), keys)
    return (found.get(block.result, -1),)


def _anchor(item: Node) -> tuple[Any, ...] | None:
    """An op with the tensors it reads, if it reads any."""
    names = tuple(leaf_name(arg) for arg in item.args if is_leaf(arg) and arg.op != "const")
    return (item.op, names) if names else None
