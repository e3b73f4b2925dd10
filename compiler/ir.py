"""The program: immutable, interned, typed nodes in two forms.

Equal means identical: building the same node twice gives the same object, so common subexpressions
merge by themselves. Where a node came from (spec lines) and what it is called are kept beside it,
in the module, and never take part in identity.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from .dims import Affine, Dim, substitute
from .header import TensorInfo


@dataclass(frozen=True)
class Type:
    """Shape and element type. `stored` is a weight whose format block form does not say."""

    shape: tuple[Dim, ...]
    dtype: str = "f32"

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.shape))}] {self.dtype}"


Attrs = tuple[tuple[str, Any], ...]


class Node:
    """One operation. Make nodes with `node`, which checks operands, infers the type and interns."""

    __slots__ = ("__weakref__", "args", "attrs", "op", "type")
    op: str
    args: tuple[Node, ...]
    attrs: Attrs
    type: Type

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"nodes are immutable: cannot set {name}")

    def __getitem__(self, attr: str) -> Any:
        return dict(self.attrs)[attr]

    def get(self, attr: str, default: Any = None) -> Any:
        return dict(self.attrs).get(attr, default)

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    def __repr__(self) -> str:
        return f"<{self.op} : {self.type}>"


_NODES: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()


def intern_node(op: str, args: tuple[Node, ...], attrs: Attrs, type: Type) -> Node:
    """The one node with these parts; `ops.node` is the checked way in."""
    key = (op, args, tuple((name, _exact(value)) for name, value in attrs), type)
    found = _NODES.get(key)
    if found is None:
        found = object.__new__(Node)
        for name, value in (("op", op), ("args", args), ("attrs", attrs), ("type", type)):
            object.__setattr__(found, name, value)
        _NODES[key] = found
    return found


def _exact(value: Any) -> Any:
    """What tells an attribute from those that only compare equal: 1, 1.0 and True; 0.0 and -0.0."""
    if isinstance(value, tuple):
        return tuple(_exact(item) for item in value)
    return value.__class__, repr(value) if isinstance(value, float) else value


@dataclass(frozen=True)
class Block:
    """A function: parameters, the value it returns, and the cache writes it makes on the way."""

    name: str
    params: tuple[Node, ...]
    result: Node
    effects: tuple[Node, ...] = ()

    @property
    def roots(self) -> tuple[Node, ...]:
        return (*self.effects, self.result)

    @cached_property
    def order(self) -> tuple[Node, ...]:
        """What the result is made of, as `topological` has it."""
        return tuple(topological([self.result]))


@dataclass(frozen=True)
class Module:
    """A whole program.

    Block form has `layers` nodes and named blocks; unrolled form has every layer inline, concrete
    tensor names and storage formats. `outputs` are what a run returns; cache writes live as
    operands of the attention that reads them, or among `effects` when the step only fills caches.
    `kinds` are the kinds of layers with what each sets, `params` the hyperparameters that the spec read (a tuple
    where a layer has its own).
    `origins` maps a node to the spec lines it came from, `behind` to the lines that gave the names on them their
    values, `names` to the name it had there, `places` of an
    unrolled module to the layer (None outside of them) and the block it came from.
    """

    name: str
    form: str
    outputs: tuple[Node, ...]
    effects: tuple[Node, ...] = ()
    tensors: tuple[TensorInfo, ...] = ()
    kinds: tuple[tuple[str, tuple[int, ...], Attrs], ...] = ()
    params: Attrs = ()
    origins: Mapping[Node, tuple[Any, ...]] = field(default_factory=dict, compare=False, repr=False)
    names: Mapping[Node, str] = field(default_factory=dict, compare=False, repr=False)
    places: Mapping[Node, tuple[int | None, str]] = field(default_factory=dict, compare=False, repr=False)
    behind: Mapping[Node, tuple[Any, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def roots(self) -> tuple[Node, ...]:
        return (*self.effects, *self.outputs)

    def graphs(self) -> dict[Block | None, list[Node]]:
        """The nodes of every block that is called, callees first, and last, of None, those outside of blocks."""
        found: dict[Block | None, list[Node]] = {}

        def visit(owner: Block | None, roots: Iterable[Node]) -> None:
            order = topological(roots)
            for item in order:
                for block in called(item):
                    if block not in found:
                        visit(block, block.roots)
            found[owner] = order

        visit(None, self.roots)
        return found

    def blocks(self) -> tuple[Block, ...]:
        """Every block that is called, callees first."""
        return tuple(block for block in self.graphs() if block is not None)


def called(item: Node) -> tuple[Block, ...]:
    """The blocks a node refers to: a call's callee, a layer stack's blocks, a fused node's body."""
    if item.op == "layers":
        return tuple(dict.fromkeys(block for _, block in item["table"]))
    block = item.get("block")
    return (block,) if isinstance(block, Block) else ()


def layers_of_blocks(module: Module) -> dict[str, tuple[int, ...]]:
    """In which layers each block is run."""
    found: dict[str, set[int]] = {}

    def visit(block: Block, layer: int) -> None:
        found.setdefault(block.name, set()).add(layer)
        for item in topological(block.roots):
            for inner in called(item):
                visit(inner, layer)

    for item in topological(module.roots):
        if item.op == "layers":
            for layer, block in item["table"]:
                visit(block, layer)
    return {name: tuple(sorted(layers)) for name, layers in found.items()}


def topological(roots: Iterable[Node], known: Container[Node] = ()) -> list[Node]:
    """Every node reachable from the roots, operands before users, in a stable order; none that is `known`, nor
    what only those need."""
    order: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        item, ready = stack.pop()
        if item in order or item in known:
            continue
        if ready:
            order[item] = None
        else:
            stack.append((item, True))
            stack.extend((arg, False) for arg in reversed(item.args) if arg not in order)
    return list(order)


def users(roots: Iterable[Node]) -> dict[Node, list[Node]]:
    """Who reads each node; a node that reads another twice is listed twice."""
    found: dict[Node, list[Node]] = {}
    for item in topological(roots):
        found.setdefault(item, [])
        for arg in item.args:
            found[arg].append(item)
    return found


class Rebuilder:
    """Rebuilds a graph bottom-up through `visit(node, new_args) -> node`, carrying what is known of nodes along."""

    def __init__(self, visit: Callable[[Node, tuple[Node, ...]], Node]):
        self.visit = visit
        self.done: dict[Node, Node] = {}

    def __call__(self, roots: Iterable[Node]) -> tuple[Node, ...]:
        roots = tuple(roots)
        for item in topological(roots):
            if item not in self.done:
                self.done[item] = self.visit(item, tuple(self.done[arg] for arg in item.args))
        return tuple(self.done[root] for root in roots)


def carry(module: Module, new: Mapping[Node, Node]) -> dict[str, Any]:
    """What is known of a rebuilt module's nodes: each new node has the origins of all the nodes it replaces."""
    origins: dict[Node, tuple[Any, ...]] = {}
    names: dict[Node, str] = {}
    places: dict[Node, tuple[int | None, str]] = {}
    behind: dict[Node, tuple[Any, ...]] = {}
    for before, after in new.items():
        lines = module.origins.get(before, ())
        if lines:
            origins[after] = tuple(dict.fromkeys((*origins.get(after, ()), *lines)))
        if before in module.names:
            names.setdefault(after, module.names[before])
        if before in module.places:
            places.setdefault(after, module.places[before])
        if before in module.behind:
            behind.setdefault(after, module.behind[before])
    return {"origins": origins, "names": names, "places": places, "behind": behind}


def rebuilt(module: Module, visit: Callable[[Node, tuple[Node, ...]], Node]) -> Module:
    """The module with every node passed through `visit`."""
    rebuild = Rebuilder(visit)
    outputs, effects = rebuild(module.outputs), rebuild(module.effects)
    return replace(module, outputs=outputs, effects=effects, **carry(module, rebuild.done))


def substitute_attr(value: Any, values: Mapping[str, Dim]) -> Any:
    """An attribute with symbols replaced: dimensions, tuples of them, and `{i}` in tensor names."""
    if isinstance(value, Affine):
        return substitute(value, values)
    if isinstance(value, tuple):
        return tuple(substitute_attr(item, values) for item in value)
    if isinstance(value, Type):
        return Type(tuple(substitute(dim, values) for dim in value.shape), value.dtype)
    if isinstance(value, str) and "{i}" in value and "i" in values:
        return value.replace("{i}", str(values["i"]))
    return value


def nodes_of(module: Module) -> Iterator[Node]:
    """Every node of the module, those inside blocks included."""
    graphs = module.graphs()
    yield from graphs.pop(None)
    for order in graphs.values():
        yield from order
