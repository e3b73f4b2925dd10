"""Whether layers are of another kind in the reference than in our program: then no number is wrong, but who gets it.

An op of one layer and the same op of the spec in a layer of another kind are twins: what the kinds set differs in
them, and nothing else. Where the reference has what our op would give with its twin's settings, its layer is of the
twin's kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from briolette.compiler.ir import Module, Node
from briolette.compiler.ops import OPS, attributes

from .case import Array, Case, Cause
from .measure import distance
from .replay import Compared, Replay

SET_BY_KINDS = ("rope", "attend")  # ops with settings
OWN = {"rope": 2, "attend": 4}  # how many of their operands are a layer's own, and no setting


@dataclass
class Strays:
    """The layers that are of another kind in the reference: layer -> our kind, theirs, and the ops that show it."""

    kinds: dict[int, tuple[str, str]] = field(default_factory=dict)
    nodes: dict[Node, set[str]] = field(default_factory=dict)  # with the names of what differs
    layers: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def cause(self) -> Cause:
        """In words, the layers of one change together."""
        moved: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for layer, change in sorted(self.kinds.items()):
            moved[change].append(layer)
        parts = [
            f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))} {'are' if len(layers) > 1 else 'is'} "
            f"`{theirs}` in the reference and `{ours}` in ours"
            for (ours, theirs), layers in moved.items()
        ]
        shows = ", ".join(sorted(set().union(*self.layers.values())))
        return Cause(f"{'; '.join(parts)}: by {shows}")


class Twins:
    """The same op of the spec in layers of other kinds."""

    def __init__(self, module: Module, order: list[Node]):
        self.module = module
        self.kind = {layer: name for name, layers, _ in module.kinds for layer in layers}
        self.found: defaultdict[Any, dict[str, Node]] = defaultdict(dict)
        for item in order:
            if item.op in SET_BY_KINDS and (kind := self.kind_of(item)) is not None:
                self.found[self.place(item)].setdefault(kind, item)

    def kind_of(self, item: Node) -> str | None:
        layer, _ = self.module.places.get(item, (None, ""))
        return None if layer is None else self.kind.get(layer)

    def place(self, item: Node) -> Any:
        return item.op, self.module.origins.get(item, ())

    def of(self, item: Node) -> dict[str, tuple[Node, set[str]]]:
        """By kind: the twin, and the names of the settings in which it differs, if there are any."""
        twins = {}
        for kind, twin in self.found.get(self.place(item), {}).items():
            if kind == self.kind_of(item) or twin.shape != item.shape:
                continue
            names = {key for key, value in attributes(item).items() if attributes(twin)[key] != value}
            if item.args[OWN[item.op] :] != twin.args[OWN[item.op] :]:
                names.add("frequency factors")
            if names:
                twins[kind] = twin, names
        return twins


def swayed(found: Replay, item: Node, twin: Node) -> Array:
    """What an op gives with the settings of its twin."""
    own = OWN[item.op]
    args = [found.lane.values[arg] for arg in (*item.args[:own], *twin.args[own:])]
    value: Array = OPS[item.op].evaluate(found.lane.context, *args, **attributes(twin))
    return value


def strays(found: Replay, suspects: Mapping[Node, Case]) -> Strays | None:
    """The layers of another kind, if that is what is wrong: `suspects` are diverging ops, each with its case.

    A wrong number in a kind's entry looks the same where all layers of a kind have it. So besides each layer having
    nothing that is right only for our kind, there must be another of that kind that is right, or two numbers wrong
    at once, or layers that went the other way.
    """
    twins, result = Twins(found.module, found.order), Strays()
    for item, case in suspects.items():
        for kind, (twin, names) in twins.of(item).items() if item.op in SET_BY_KINDS else ():
            if case.fits(case.again(swayed(found, item, twin))):
                layer, own = found.module.places[item][0], twins.kind_of(item)
                if layer is not None and own is not None:
                    result.kinds[layer] = own, kind
                    result.nodes[item] = names
                    result.layers[layer] |= names
    if not result.kinds:
        return None
    right: set[int] = set()
    for row in found.compared:
        layer = found.module.places.get(row.node, (None, ""))[0]
        if layer is not None and row.node.op in SET_BY_KINDS and not row.diverges and proves(found, row, twins):
            right.add(layer)
    for layer in right & set(result.kinds):
        del result.kinds[layer], result.layers[layer]
    result.nodes = {n: names for n, names in result.nodes.items() if found.module.places[n][0] in result.kinds}
    ours = {own for own, _ in result.kinds.values()}
    kept = {twins.kind[layer] for layer in right}
    several = any(len(names) > 1 for names in result.layers.values())
    return result if result.kinds and (several or len(ours) > 1 or ours & kept) else None


def proves(found: Replay, row: Compared, twins: Twins) -> bool:
    """Whether a value that is right would be wrong with the settings of every other kind."""
    others = twins.of(row.node).values()
    shaped = row.theirs.shape == found.lane.values[row.node].shape
    return (
        bool(others)
        and shaped
        and all(distance(swayed(found, row.node, twin), row.theirs) > row.allowed for twin, _ in others)
    )
