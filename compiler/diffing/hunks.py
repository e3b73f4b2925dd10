"""A difference as a person reads it: hunks, each about one line of a spec, with what became of its ops.

Sizes that only follow from hyperparameters are told once, in the tables, and not again at every op. Hunks that say the
same of several kinds of layers are one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from briolette.spec.errors import Span

from ..ir import Block, Module, Node, layers_of_blocks, topological
from ..ops import OPS
from ..text import attribute_text, plain
from ..values import stem
from .collapse import collapsed
from .match import BOUNDS, SIZES, is_leaf, leaf_name, rounds_alike
from .script import MAIN, Difference, Unit, units

QUIET = frozenset({"position", "param"})


@dataclass(frozen=True)
class Change:
    """An attribute, an operand or the op itself, before and after; an empty text is nothing."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Line:
    """An op that is new (+), gone (-) or changed (~)."""

    mark: str
    text: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Hunk:
    """What became of the ops of one spec line. `before` and `after` are the line on either side, where there is one.

    `behind` are, on either side, the lines that gave the names on it their values.
    """

    before: Span | None
    after: Span | None
    lines: tuple[Line, ...]
    blocks: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    order: float = field(default=0, compare=False)  # by lines of the newer spec
    behind: tuple[tuple[Span, ...], tuple[Span, ...]] = field(default=((), ()), compare=False)


@dataclass(frozen=True)
class Section:
    """The hunks about blocks of one name, whatever their kind. `status`: changed, new or gone."""

    name: str
    status: str
    hunks: tuple[Hunk, ...]


@dataclass
class _Side:
    """What display needs to know of one module."""

    module: Module
    units: Mapping[str, Unit] = field(init=False)
    layers: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.units = units(self.module)
        self.layers = layers_of_blocks(self.module)

    def span(self, item: Node) -> Span | None:
        lines = self.module.origins.get(item, ())
        return _line(lines[0]) if lines else None

    def behind(self, item: Node | None) -> tuple[Span, ...]:
        return tuple(_line(span) for span in self.module.behind.get(item, ())) if item is not None else ()

    def name(self, item: Node) -> str | None:
        """What the spec calls a value, without the layer."""
        name = self.module.names.get(item)
        layer, _ = self.module.places.get(item, (None, ""))
        return name.removesuffix(f".{layer}") if name is not None else None

    def short(self, item: Node) -> str:
        """A value as an operand: its name, or the op that makes it."""
        if is_leaf(item):
            return leaf_name(item)
        if item.op == "param":
            return f"%{item['name']}"
        name = self.name(item)
        if item.op in ("cache", "cache_write"):
            layer, _ = self.module.places.get(item, (None, ""))
            slot = item["slot"] if layer is None or item["slot"] != layer else "i"
            return f"cache[{slot}].{item['plane']}"
        return f"%{name}" if name else f"{_verb(item)}(…)" if item.args else item.op

    def text(self, item: Node, attributes: bool = True) -> str:
        """An op in one line."""
        operands = ", ".join(self.short(arg) for arg in item.args if arg.op != "position")
        if item.op == "cache":
            return self.short(item)
        if item.op == "cache_write":
            return f"{self.short(item)} <- {operands}"
        hidden = SIZES | {"block"} if item.op == "call" or not attributes else SIZES
        given = [f"{key} = {plain(value)}" for key, value in item.attrs if key not in hidden and attributes]
        call = f"{_verb(item)}({operands})" + (f" {{{', '.join(given)}}}" if given else "")
        name = self.name(item)
        return f"%{name} = {call}" if name else call


def sections(change: Difference, a: Module, b: Module) -> tuple[Section, ...]:
    """What a person reads of a difference, in the order of the newer spec."""
    ours, theirs = _Side(a), _Side(b)
    lines = _Lines(change, ours, theirs)
    found: dict[str, list[Hunk]] = {}
    status: dict[str, set[str]] = {}
    kernels = b.form == "unrolled"  # blocks there are kernels, which main shows where it uses them
    for edit in change.blocks:
        if edit.same or (kernels and edit.name != MAIN):
            continue
        base = ours.units[edit.base] if edit.base is not None else None
        view = _View(lines, base, theirs.units[edit.name], change.matches[edit.name])
        for name, hunk in view.hunks():
            found.setdefault(name, []).append(hunk)
            status.setdefault(name, set()).add("changed" if base else "new")
    for gone in change.removed if not kernels else ():
        view = _View(lines, ours.units[gone], None, {})
        for name, hunk in view.hunks():
            found.setdefault(name, []).append(hunk)
            status.setdefault(name, set()).add("gone")
    made = [
        Section(name, next(iter(status[name])) if len(status[name]) == 1 else "changed", tuple(_merged(hunks)))
        for name, hunks in found.items()
    ]
    return tuple(sorted(made, key=lambda s: _order(s.hunks[0])))


def rounding_differs(change: Difference) -> bool:
    """Whether constants differ by what is lost in f32, which no hunk tells."""
    for matched in change.matches.values():
        for new, old in matched.items():
            before = [*old.attrs, *((at, a["value"]) for at, a in enumerate(old.args) if a.op == "const")]
            after = dict([*new.attrs, *((at, a["value"]) for at, a in enumerate(new.args) if a.op == "const")])
            if any(value != after.get(key) and rounds_alike(value, after.get(key)) for key, value in before):
                return True
    return False


def _merged(hunks: Iterable[Hunk]) -> Iterator[Hunk]:
    """Hunks that say the same of several blocks or layers as one, in the order of the spec."""
    found: dict[tuple[object, ...], Hunk] = {}
    for hunk in hunks:
        key = (hunk.before, hunk.after, hunk.lines)
        if key in found:
            other = found[key]
            blocks = tuple(dict.fromkeys((*other.blocks, *hunk.blocks)))
            layers = tuple(sorted({*other.layers, *hunk.layers}))
            found[key] = replace(other, blocks=blocks, layers=layers, behind=_both(other.behind, hunk.behind))
        else:
            found[key] = hunk
    yield from sorted(collapsed(found.values()), key=_order)


Behind: TypeAlias = tuple[tuple[Span, ...], tuple[Span, ...]]


def _both(some: Behind, more: Behind) -> Behind:
    return tuple(dict.fromkeys(some[0] + more[0])), tuple(dict.fromkeys(some[1] + more[1]))


def _order(hunk: Hunk) -> tuple[float, int]:
    return hunk.order, hunk.layers[0] if hunk.layers else -1


class _Lines:
    """Which lines of the two specs correspond: those that most matched ops come from."""

    def __init__(self, change: Difference, ours: _Side, theirs: _Side):
        self.ours, self.theirs = ours, theirs
        forth: dict[Span, Counter[Span]] = {}
        back: dict[Span, Counter[Span]] = {}
        for matched in change.matches.values():
            for new, old in matched.items():
                before, after = ours.span(old), theirs.span(new)
                if before and after:
                    forth.setdefault(before, Counter())[after] += 1
                    back.setdefault(after, Counter())[before] += 1
        self.bases = {edit.name: edit.base for edit in change.blocks}
        self._after = {line: count.most_common(1)[0][0] for line, count in forth.items()}
        self._before = {line: count.most_common(1)[0][0] for line, count in back.items()}

    def after(self, line: Span | None) -> Span | None:
        return self._after.get(line) if line else None

    def before(self, line: Span | None) -> Span | None:
        return self._before.get(line) if line else None


class _View:
    """One block beside the block it comes from."""

    def __init__(self, lines: _Lines, base: Unit | None, unit: Unit | None, of: Mapping[Node, Node]):
        self.lines, self.ours, self.theirs, self.of = lines, lines.ours, lines.theirs, of
        self.back = {old: new for new, old in of.items()}
        self.base, self.unit = base, unit
        self.old = _inner(base)
        self.new = _inner(unit)

    def hunks(self) -> Iterator[tuple[str, Hunk]]:
        """Each hunk with the block's name, its kind left out."""
        groups: dict[tuple[str, int | None, Span | None, Span | None], list[Line]] = {}
        orders: dict[object, float] = {}
        behinds: dict[object, Behind] = {}
        order = 0.0
        for side, item, line in self.entries():
            span = self.where(side, item)
            before, after = (self.lines.before(span), span) if side is self.theirs else (span, self.lines.after(span))
            order = after.line if after else order + 0.001
            layer, block = self.place(side, item)
            key = (block, layer, before, after)
            groups.setdefault(key, []).append(line)
            orders.setdefault(key, order)
            behinds[key] = _both(behinds.get(key, ((), ())), self.behind(side, item))
        for key, found in groups.items():
            block, layer, before, after = key
            yield block, Hunk(before, after, tuple(found), self.blocks(), self.layers(layer), orders[key], behinds[key])

    def behind(self, side: _Side, item: Node) -> Behind:
        """The lines behind an op, and behind what it was."""
        old, new = (self.of.get(item), item) if side is self.theirs else (item, None)
        return self.ours.behind(old), self.theirs.behind(new)

    def blocks(self) -> tuple[str, ...]:
        unit = self.unit or self.base
        assert unit is not None
        return () if unit.name == MAIN else (unit.name,)

    def layers(self, layer: int | None) -> tuple[int, ...]:
        if layer is not None:
            return (layer,)
        side = self.theirs if self.unit else self.ours
        return side.layers.get(self.blocks()[0], ()) if self.blocks() else ()

    def place(self, side: _Side, item: Node) -> tuple[int | None, str]:
        layer, block = side.module.places.get(item, (None, (self.blocks() or (MAIN,))[0]))
        return layer, stem(block)

    def where(self, side: _Side, item: Node) -> Span | None:
        """The spec line of an op; one that has none belongs to the line of who reads it."""
        nodes = self.new if side is self.theirs else self.old
        return side.span(item) or next((found for n in nodes if item in n.args and (found := side.span(n))), None)

    def entries(self) -> Iterator[tuple[_Side, Node, Line]]:
        """What is to be shown, in order; a removed op stands behind the last one that stayed."""
        at = {item: float(n) for n, item in enumerate(self.new)}
        found: list[tuple[float, _Side, Node, Line]] = []
        latest = -1.0
        for old in self.old:
            if old in self.back:
                latest = at[self.back[old]]
            elif old.op not in QUIET:
                found.append((latest + 0.5, self.ours, old, Line("-", self.ours.text(old))))
        for new in self.new:
            if new.op in QUIET:
                continue
            if new not in self.of:
                found.append((at[new], self.theirs, new, Line("+", self.theirs.text(new))))
            elif changes := tuple(self.changes(self.of[new], new)):
                found.append((at[new], self.theirs, new, Line("~", self.theirs.text(new, False), changes)))
        yield from ((side, item, line) for _, side, item, line in sorted(found, key=lambda entry: entry[0]))

    # --- what changed about one op ---------------------------------------------------------------------

    def changes(self, old: Node, new: Node) -> Iterator[Change]:
        if old.op != new.op:
            yield Change("op", old.op, new.op)
        sized = [arg.shape for arg in old.args] != [arg.shape for arg in new.args] or not old.args
        before, after = dict(old.attrs), dict(new.attrs)
        for key in dict.fromkeys((*before, *after)):
            if key in SIZES or (sized and key in BOUNDS and all(isinstance(n.get(key), int) for n in (old, new))):
                continue
            if (key not in after and self.moved(old, new, key)) or self.renamed(before.get(key), after.get(key)):
                continue
            if rounds_alike(before.get(key), after.get(key)):
                continue
            shown = [self.attribute(key, side.get(key), key in side, n) for side, n in ((before, old), (after, new))]
            exact = [attribute_text(n.get(key)) for n in (old, new)]
            if shown[0] != shown[1]:
                yield Change(key, *shown)
            elif exact[0] != exact[1] and not isinstance(old.get(key), Block):
                yield Change(key, *exact)  # six digits do not tell them apart
        yield from self.operands(old, new)

    def attribute(self, key: str, value: object, given: bool, item: Node) -> str:
        if isinstance(value, Block):
            return _verb(item) if item.op == "call" else value.name
        if not given:
            value = OPS[item.op].attrs.get(key)
            if value is None:
                return ""
        return plain(value)

    def operands(self, old: Node, new: Node) -> Iterator[Change]:
        names = OPS[new.op].operands
        for at in range(max(len(old.args), len(new.args))):
            x = old.args[at] if at < len(old.args) else None
            y = new.args[at] if at < len(new.args) else None
            if not self.same_operand(x, y) and not (y is None and x is not None and self.moved(old, new, x)):
                name = names[min(at, len(names) - 1)].strip("?*") if names else "operand"
                before, after = self.ours.short(x) if x else "", self.theirs.short(y) if y else ""
                if x and y and before == after and x.op == y.op == "const":  # six digits do not tell them apart
                    before, after = (attribute_text(n["value"]) for n in (x, y))
                yield Change(name, before, after)

    def moved(self, old: Node, new: Node, what: str | Node) -> bool:
        """Whether an attribute or operand that an op no longer has is had by what has been put before it."""
        made = [arg for arg in new.args if arg not in self.of and not is_leaf(arg)]
        if isinstance(what, str):
            return any(arg.get(what) == old.get(what) for arg in made)
        return any(self.same_operand(what, arg) for item in made for arg in item.args)

    def renamed(self, old: object, new: object) -> bool:
        """Whether an attribute names blocks that come from those it named before, where changes in them are told."""
        if isinstance(old, Block) and isinstance(new, Block):
            return self.lines.bases.get(new.name) == old.name
        if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
            pairs = list(zip(old, new, strict=True))
            tables = all(isinstance(side, tuple) and isinstance(side[-1], Block) for pair in pairs for side in pair)
            return tables and all(x[0] == y[0] and self.renamed(x[1], y[1]) for x, y in pairs)
        return False

    def same_operand(self, x: Node | None, y: Node | None) -> bool:
        """Whether an operand is the same value, or leads to the same through what was put in or taken out."""
        if x is None or y is None:
            return False
        if x.op == y.op == "const":
            return x is y or rounds_alike(x["value"], y["value"])  # nodes are interned
        if is_leaf(x) or is_leaf(y):
            return is_leaf(x) and is_leaf(y) and (leaf_name(x) == leaf_name(y) or _resized(x, y))
        return bool(_sources(x, self.back) & {self.of[n] for n in _sources(y, self.of)})


def _verb(item: Node) -> str:
    """What an op does: a call runs its block, of whatever kind."""
    return stem(item["block"].name) if item.op == "call" else item.op


def _inner(unit: Unit | None) -> list[Node]:
    return [] if unit is None else [n for n in topological((*unit.effects, *unit.results)) if not is_leaf(n)]


def _sources(start: Node, matched: Mapping[Node, Node]) -> set[Node]:
    """The matched values that a value comes from, through unmatched ones."""
    found, pending, seen = set(), [start], {start}
    while pending:
        item = pending.pop()
        if item in matched:
            found.add(item)
            continue
        fresh = [arg for arg in item.args if arg not in seen and not is_leaf(arg)]
        seen.update(fresh)
        pending += fresh
    return found


def _resized(x: Node, y: Node) -> bool:
    """Whether two parts of one tensor differ only because the tensor has another size."""
    while x.op == y.op and x.op != "weight" and x.args and y.args:
        x, y = x.args[0], y.args[0]
    return x.op == y.op == "weight" and x["name"] == y["name"] and x.shape != y.shape


def _line(span: Span) -> Span:
    """A span as a whole line."""
    return Span(span.line, 1, span.line, 1, span.file)
