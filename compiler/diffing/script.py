"""The edit script between two modules: `apply(difference(a, b), a) == b`.

A block of `b` is told as steps, one a node: a node of the block it comes from that is kept, or one that is made. What
is not mentioned is removed. Names of values and of block parameters, and spec lines, are no differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any, TypeAlias

from ..ir import Block, Module, Node, Type, layers_of_blocks
from ..ops import node
from ..values import stem
from .match import Graph, Segment, is_leaf, leaf_name, match

MAIN = "main"
ALIKE = 0.5  # the part of two blocks that is matched where one is the other under a new name


@dataclass(frozen=True)
class BlockRef:
    """A block by name, where an attribute has one."""

    name: str


@dataclass(frozen=True)
class Keep:
    """Node number `source` of the block it comes from, on what its operands have become."""

    source: int


@dataclass(frozen=True)
class Make:
    """A node made anew; `source` is what it was, if anything. `args` are earlier steps."""

    source: int | None
    op: str
    args: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...]


Step: TypeAlias = Keep | Make


@dataclass(frozen=True)
class BlockEdit:
    """How a block (or `main`) is made of the block `base` of the other module; of nothing, where that is None.

    `effects` and `results` are steps, `same` says that the block is as it was.
    """

    name: str
    base: str | None
    params: tuple[tuple[str, Type], ...]
    steps: tuple[Step, ...]
    effects: tuple[int, ...]
    results: tuple[int, ...]
    same: bool


@dataclass(frozen=True)
class Stretch:
    """Items `start` to `stop` of the other sequence."""

    start: int
    stop: int


Splice: TypeAlias = tuple[Stretch | tuple[Any, ...], ...]  # a sequence: stretches of another, and new items


@dataclass(frozen=True)
class Difference:
    """What makes module `b` of module `a`. `matches` pairs `b`'s nodes with `a`'s, block by block, for display."""

    name: tuple[str, str]
    form: tuple[str, str]
    blocks: tuple[BlockEdit, ...]  # callees first, `main` last
    removed: tuple[str, ...]  # blocks that nothing comes from
    kinds: Splice
    params: Splice
    tensors: Splice
    same: bool
    matches: dict[str, dict[Node, Node]] = field(compare=False, repr=False, default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """A block, or what is outside of blocks."""

    name: str
    params: tuple[Node, ...]
    effects: tuple[Node, ...]
    results: tuple[Node, ...]

    def graph(self, module: Module, places: bool) -> Graph:
        """The graph to match; where both modules know of `places`, ops stay in their layer and block."""
        effects = ((f"effect {n.get('slot')} {n.get('plane')}", n) for n in self.effects)
        roots = [*effects, *((f"result {at}", n) for at, n in enumerate(self.results))]
        segment: dict[Node, Segment] = {}
        if self.name == MAIN and places:
            segment = {n: (layer, stem(block)) for n, (layer, block) in module.places.items()}
        return Graph(roots, self.params, segment)


def units(module: Module) -> dict[str, Unit]:
    """The blocks of a module by name, callees first, and `main`."""
    found = {b.name: Unit(b.name, b.params, b.effects, (b.result,)) for b in module.blocks()}
    return {**found, MAIN: Unit(MAIN, (), module.effects, module.outputs)}


# --- finding it -----------------------------------------------------------------------------------------


def difference(a: Module, b: Module) -> Difference:
    """What makes `b` of `a`."""
    ours, theirs = units(a), units(b)
    places = bool(a.places and b.places)
    graphs = {name: unit.graph(a, places) for name, unit in ours.items()}
    edits: list[BlockEdit] = []
    matches: dict[str, dict[Node, Node]] = {}
    origins = _Origins(a, b, ours, theirs)
    for name, unit in theirs.items():
        graph = unit.graph(b, places)
        tried = {base: match(graphs[base], graph) for base in origins.of(unit)}
        likeness = {base: _likeness(found, graphs[base], graph) for base, found in tried.items()}
        base = max(likeness, key=likeness.__getitem__, default=None)
        if base is not None and stem(base) != stem(name) and likeness[base] < ALIKE and b.form == "blocks":
            base = None
        matches[name] = {} if base is None else tried[base]
        source = _Source() if base is None else _Source(ours[base], graphs[base])
        edits.append(_edit(unit, graph, source, matches[name]))
    used = {edit.base for edit in edits}
    removed = tuple(name for name in ours if name not in used)
    tables = {key: _splice(getattr(a, key), getattr(b, key)) for key in ("kinds", "params", "tensors")}
    alike = all(tables[key] == _splice(getattr(a, key), getattr(a, key)) for key in tables)
    same = alike and (a.name, a.form) == (b.name, b.form) and not removed and all(edit.same for edit in edits)
    return Difference((a.name, b.name), (a.form, b.form), tuple(edits), removed, same=same, matches=matches, **tables)


def renamed_kinds(a: Module, b: Module) -> dict[str, str]:
    """Kinds of layers that have another name in `b`, each with the one in `a`: all else about them is the same."""
    ours, theirs = ({name: rest for name, *rest in module.kinds} for module in (a, b))
    gone = {repr(rest): name for name, rest in ours.items() if name not in theirs}
    return {name: gone[repr(rest)] for name, rest in theirs.items() if name not in ours and repr(rest) in gone}


def renamed_blocks(change: Difference) -> dict[str, str]:
    """Blocks that have another name now, each with the one it had; kinds and versions left out."""
    if change.form[1] != "blocks":
        return {}
    pairs = ((stem(edit.name), stem(edit.base)) for edit in change.blocks if edit.base is not None)
    return {new: old for new, old in pairs if new != old}


class _Origins:
    """Where the blocks of `b` may come from."""

    def __init__(self, a: Module, b: Module, ours: Mapping[str, Unit], theirs: Mapping[str, Unit]):
        self.ours, self.form = ours, b.form
        self.kinds = renamed_kinds(a, b)
        self.kept = {stem(name) for name in theirs}
        self.layers = {**{MAIN: ()}, **layers_of_blocks(a)}, layers_of_blocks(b)

    def of(self, unit: Unit) -> list[str]:
        """In block form the block of its name and kind that is run in the most of its layers, else those of its name,
        else one of its kind whose name is gone.

        The blocks of unrolled form are kernels, whose names are numbers in the order of making: content counts.
        """
        if unit.name == MAIN:
            return [MAIN]
        if self.form == "unrolled":
            return [other.name for other in self.ours.values() if replace(other, name=unit.name) == unit][:1]
        first, *rest = unit.name.split(".")
        name = ".".join((first, *(self.kinds.get(part, part) for part in rest)))
        versions = [other for other in self.ours if _unversioned(other) == _unversioned(name)]
        if versions:
            return [max(versions, key=lambda other: (self.common(other, unit.name), other == name))]
        family = [other for other in self.ours if stem(other) == first]
        return family or [
            other for other in self.ours if stem(other) not in self.kept and self.common(other, unit.name)
        ]

    def common(self, old: str, new: str) -> int:
        """In how many layers both are run."""
        before, after = (layers.get(name, ()) for layers, name in zip(self.layers, (old, new), strict=True))
        return len({*before} & {*after})


def _unversioned(name: str) -> str:
    """A block's name without its number: `attention.local` of `attention.local.2`."""
    rest, _, last = name.rpartition(".")
    return rest if last.isdigit() else name


def _likeness(found: dict[Node, Node], a: Graph, b: Graph) -> float:
    return 2 * len(found) / max(1, len(a.inner) + len(b.inner))


class _Source:
    """The block that another comes from; without arguments, none."""

    def __init__(self, unit: Unit | None = None, graph: Graph | None = None):
        self.unit = unit
        self.nodes = graph.nodes if graph else []
        self.place = graph.place if graph else {}
        self.leaves = {leaf_name(n): n for n in self.nodes if is_leaf(n)}


def _edit(unit: Unit, graph: Graph, source: _Source, matched: dict[Node, Node]) -> BlockEdit:
    steps: list[Step] = []
    place = graph.place
    image: dict[Node, int] = {}  # what nodes of the source have become
    for at, item in enumerate(graph.nodes):
        was = matched.get(item)
        if is_leaf(item):
            was = item if item in source.place else source.leaves.get(leaf_name(item))
        if was is not None and was in image:
            was = None
        if was is not None:
            image[was] = at
        args = tuple(place[arg] for arg in item.args)
        if was is not None and _kept(was, item) and tuple(image.get(arg, -1) for arg in was.args) == args:
            steps.append(Keep(source.place[was]))
        else:
            attrs = tuple((key, _referred(value)) for key, value in item.attrs)
            steps.append(Make(None if was is None else source.place[was], item.op, args, attrs))
    effects, results = (tuple(place[n] for n in roots) for roots in (unit.effects, unit.results))
    params = tuple((p["name"], p.type) for p in unit.params)
    base = source.unit
    same = (
        base is not None
        and base.name == unit.name
        and len(image) == len(source.nodes)
        and [p.type for p in base.params] == [p.type for p in unit.params]
        and all(isinstance(s, Keep) or (s.op == "param" and s.source is not None) for s in steps)
        and tuple(image[n] for n in base.effects) == effects
        and tuple(image[n] for n in base.results) == results
    )
    return BlockEdit(unit.name, base.name if base else None, params, tuple(steps), effects, results, same)


def _kept(was: Node, item: Node) -> bool:
    """Whether a node is the same op with the same attributes, blocks by their names."""
    if was is item:
        return True
    ours, theirs = (tuple((key, _referred(value)) for key, value in n.attrs) for n in (was, item))
    return was.op == item.op and repr(ours) == repr(theirs)


def _referred(value: Any) -> Any:
    """An attribute with blocks by name."""
    if isinstance(value, Block):
        return BlockRef(value.name)
    return tuple(_referred(item) for item in value) if isinstance(value, tuple) else value


def _splice(before: Sequence[Any], after: Sequence[Any]) -> Splice:
    """The second sequence in terms of the first."""
    parts: list[Stretch | tuple[Any, ...]] = []
    ours, theirs = ([repr(item) for item in items] for items in (before, after))
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if tag == "equal":
            parts.append(Stretch(i1, i2))
        elif j2 > j1:
            parts.append(tuple(after[j1:j2]))
    return tuple(parts)


# --- applying it ----------------------------------------------------------------------------------------


def apply(change: Difference, a: Module) -> Module:
    """The module that the difference leads to from `a`."""
    ours = units(a)
    graphs = {name: unit.graph(a, False) for name, unit in ours.items()}
    blocks: dict[str, Block] = {}
    for edit in change.blocks:
        made = _made(edit, graphs[edit.base].nodes if edit.base is not None else [], blocks)
        effects, results = (tuple(made[at] for at in places) for places in (edit.effects, edit.results))
        if edit.name != MAIN:
            params = tuple(node("param", name=name, type=type) for name, type in edit.params)
            blocks[edit.name] = Block(edit.name, params, results[0], effects)
    tables = {key: tuple(_spliced(getattr(change, key), getattr(a, key))) for key in ("kinds", "params", "tensors")}
    return Module(
        change.name[1],
        change.form[1],
        results,
        effects,
        tensors=tables["tensors"],
        kinds=tables["kinds"],
        params=tables["params"],
    )


def _made(edit: BlockEdit, source: Sequence[Node], blocks: dict[str, Block]) -> list[Node]:
    """The nodes of a block, step by step."""
    made: list[Node] = []
    image: dict[Node, Node] = {}
    for step in edit.steps:
        if isinstance(step, Keep):
            was = source[step.source]
            attrs = {key: _resolved(_referred(value), blocks) for key, value in was.attrs}
            made.append(node(was.op, *(image[arg] for arg in was.args), **attrs))
        else:
            attrs = {key: _resolved(value, blocks) for key, value in step.attrs}
            made.append(node(step.op, *(made[at] for at in step.args), **attrs))
        if step.source is not None:
            image[source[step.source]] = made[-1]
    return made


def _resolved(value: Any, blocks: dict[str, Block]) -> Any:
    if isinstance(value, BlockRef):
        return blocks[value.name]
    return tuple(_resolved(item, blocks) for item in value) if isinstance(value, tuple) else value


def _spliced(parts: Splice, before: Sequence[Any]) -> Iterator[Any]:
    for part in parts:
        yield from before[part.start : part.stop] if isinstance(part, Stretch) else part
