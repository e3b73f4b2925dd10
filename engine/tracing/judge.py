"""From values that diverge to the lines that are wrong, and what is wrong with them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.ir import Module, Node
from briolette.compiler.labels import labels, scope, shown_labels
from briolette.compiler.ops import OPS, attributes
from briolette.compiler.plan import is_view
from briolette.compiler.values import bare, stem
from briolette.spec.tree import Architecture, Entry

from ..gguf import GgufFile
from .case import Case, Cause
from .causes import INSIDE, likely
from .exchanges import swapped
from .file import Recording
from .kinds import SET_BY_KINDS, Strays, strays
from .measure import distance, floor_of
from .record import numbered, recordable
from .replay import MATCHED, SAME, UNKNOWN, Compared, Replay, goes_into_cache, result_label, scope_of, upstream
from .source import Place, Source, kinds_decided
from .variants import epsilon
from .weights import LargeTensor

Array = NDArray[Any]
EXPLAINED_LINES = 8  # lines for which a cause is looked for
PARTNERS = 3  # values of the reference that one of ours is compared with where none has its name


@dataclass(frozen=True)
class Finding:
    """One place where the two part. `item` is the op to blame for `row`, `through` the lines in between, `labels` what
    else diverges by the same line. `side` is "program", or "backend" where the program is right and what ran is not.
    """

    row: Compared
    item: Node
    place: Place | None
    cause: Cause | None
    through: tuple[int, ...] = ()
    between: tuple[str, ...] = ()  # what the reference has in between that equals no value of ours
    labels: tuple[str, ...] = ()
    side: str = "program"


class Judge:
    """Turns diverging values into places and causes."""

    def __init__(
        self,
        file: GgufFile,
        tree: Architecture,
        module: Module,
        reference: Recording,
        found: Replay,
        weight: Callable[[str], Any],
    ):
        self.file, self.module, self.reference, self.found, self.weight = file, module, reference, found, weight
        self.source, self.shown, self.known = Source(tree, module), shown_labels(module), labels(module)
        self.right = {row.label for row in found.compared if not row.diverges}
        self.theirs = reference.named()
        self.places = {label: i for i, label in enumerate(self.theirs)}
        self.epsilons = [(v, f"{v:g} ({name})") for name, v in self.numbers(None).items() if "epsilon" in name]
        self.epsilons = self.epsilons or [(1e-6, "1e-06")]

    def findings(self, causes: bool = True, wanted: Callable[[str], bool] = lambda label: True) -> list[Finding]:
        """The diverging values, of those whose labels are wanted; those of one line, or of one cause, together."""
        diverging = [row for row in self.found.compared if row.diverges and wanted(row.label)]
        stretches = {row.node: upstream(self.found, row.node) for row in diverging}
        stray = self.prepare(diverging, stretches) if causes else None
        explained: dict[tuple[object, ...], tuple[Node, Place | None, Cause | None]] = {}
        grouped: dict[tuple[object, ...], Finding] = {}
        counted: set[tuple[Node, object]] = set()
        searched = 0  # lines for which no number was found that is to blame
        for row in diverging:
            stretch = stretches[row.node]
            item = self.culprit(stretch)
            key: tuple[object, ...] = (self.source.line(item), "" if row.node is item else item.op, self.role(row))
            moved = next((n for n in stretch if stray is not None and n in stray.nodes), None)
            if stray is not None and moved is not None:
                key = ("kind", "", "")
                explained.setdefault(key, (moved, kinds_decided(self.source.tree), stray.cause))
            if key not in explained:
                cause = None
                if causes and searched < EXPLAINED_LINES:
                    item, cause = self.cause(row, item, stretch)
                    searched += cause is None or not cause.attribute
                explained[key] = item, self.blame(row, item, stretch, cause), cause
            item, place, cause = explained[key]
            if cause is not None and cause.attribute and place is not None and place.why:
                key = (place.span, cause.text, "")  # what is declared once and read on several lines
            if key in grouped and (row.node, key[2]) not in counted:
                grouped[key] = replace(grouped[key], labels=(*grouped[key].labels, row.label))
            elif key not in grouped:
                between = tuple(label for label, _ in self.unknown(row, item))
                grouped[key] = Finding(row, item, place, cause, self.through(row, stretch), between, (row.label,))
            counted.add((row.node, key[2]))
        return list(grouped.values())

    def prepare(self, diverging: Sequence[Compared], stretches: Mapping[Node, list[Node]]) -> Strays | None:
        """What is to be known before single values are explained: the eps that most of all shows, and layers of
        another kind."""
        norms = [row for row in diverging if row.node.op == "rms_norm" and math.isfinite(row.local)]
        if norms:
            most = max(norms, key=lambda row: row.local)
            cause = likely(self.case(most, most.node, stretches[most.node]), [epsilon])
            if cause is not None and all(cause.value != value for value, _ in self.epsilons):
                self.epsilons.append((cause.value, f"{cause.value:.3g}"))
        suspects = {}
        for row in diverging:
            stretch = stretches[row.node]
            for item in stretch:
                if item.op in SET_BY_KINDS and item not in suspects and row.theirs.shape == row.ours.shape:
                    suspects[item] = self.case(row, item, stretch)
        return strays(self.found, suspects)

    def cause(self, row: Compared, item: Node, stretch: list[Node]) -> tuple[Node, Cause | None]:
        """Why a value diverges, and the op that is to blame then."""
        if not self.reference.about.get("complete"):
            found, cause = self.search(row, stretch)
            return (found, cause) if cause is not None else (found, likely(self.case(row, found, stretch)))
        whole = self.case(row, item, stretch)
        cause = likely(whole, [swapped])  # which seen from the op alone is another operand
        if cause is not None:
            return item, cause
        for label, value in self.unknown(row, item):
            own = self.found.lane.values[item].reshape(value.shape)
            pair = replace(row, label=label, node=item, local=distance(own, value), ours=own, theirs=value)
            cause = likely(self.case(pair, item, [item]))
            if cause is not None:
                return item, cause
        return item, likely(whole)

    def unknown(self, row: Compared, item: Node) -> list[tuple[str, Array]]:
        """What the reference computes on the way to a value, of the size of an op of ours, that equals none of ours."""
        if self.found.states[item] != UNKNOWN or not self.reference.about.get("complete"):
            return []
        before = self.places[row.label]
        labels = [*self.found.missing, *self.found.unmatched]
        near = [label for label in labels if scope_of(label) == scope_of(row.label) and self.places[label] < before]
        home = stem(self.module.places.get(item, (None, "main"))[1])
        near = [label for label in near if not numbered(label) or self.home(label) == home]
        size = self.found.lane.values[item].size
        found = [(label, self.theirs[label]) for label in near if self.theirs[label].size == size]
        return sorted(found, key=lambda pair: self.places[pair[0]])[:PARTNERS]

    def through(self, row: Compared, stretch: list[Node]) -> tuple[int, ...]:
        """The lines of a stretch; where it ends a block, the one that returns it too."""
        lines = {self.source.line(n) for n in stretch if n in self.shown or n.op == "cache_write"}
        if row.label == result_label(self.module, row.node):
            returned = self.source.returned(row.node)
            lines |= {returned.span.line} if returned is not None else set()
        return tuple(sorted(lines - {0}))

    def role(self, row: Compared) -> str:
        """Which of a value's roles differs, where it is right in another."""
        return row.label.rsplit(".", 1)[-1] if self.found.states[row.node] == SAME else ""

    def culprit(self, stretch: list[Node]) -> Node:
        """The op to blame: the first of a stretch that the reference has no equal of, if it has all its values."""
        if self.reference.about.get("complete"):
            computed = [n for n in stretch if n in self.shown and self.found.states[n] == UNKNOWN and recordable(n)]
            if computed:
                return computed[0]
        return stretch[-1]

    def search(self, row: Compared, stretch: list[Node]) -> tuple[Node, Cause | None]:
        """Each op of a stretch suspected in turn, where the reference has no values in between."""
        for item in stretch:
            if item in self.shown and not is_view(item):
                cause = likely(self.case(row, item, stretch), INSIDE)
                if cause is not None:
                    return item, cause
        return stretch[-1], None

    def blame(self, row: Compared, item: Node, stretch: list[Node], cause: Cause | None) -> Place | None:
        """The line that is wrong, as far as can be told."""
        own, source = self.source.own(item), self.source
        passed_on = self.found.states[row.node] == SAME or all(is_view(n) for n in stretch)
        if passed_on and goes_into_cache(row.label):
            write = next(n for n in self.found.order if n.op == "cache_write" and n.args[0] is row.node)
            return source.stored(write) or own
        if passed_on and row.label == result_label(self.module, row.node):
            return source.returned(row.node) or own
        if cause is None:
            return own
        if cause.tensor:
            layer, _ = self.module.places.get(item, (None, ""))
            used = self.known.get(f"{scope(layer)}{cause.tensor}")
            return source.own(used) if used in stretch else own
        if cause.operand is not None:
            return source.operand(item, cause.operand, self.agrees, self.home(cause.reads))
        declared = source.attribute(item, cause.attribute) if cause.attribute else None
        if cause.extra:
            declared = source.condition(item)
        if declared is None:
            return own
        right = self.cleared(cause).get(declared[1], set())
        if isinstance(declared[0], Entry) and right and self.module.places[item][0] not in right:
            return kinds_decided(source.tree) or own  # the kind is right, for other layers
        if right:
            return own
        return Place(declared[0].span, f"line {source.line(item)} takes `{declared[1].split('[')[0]}` from here")

    def agrees(self, label: str) -> bool:
        """Whether the reference has our value of this name, or what the block makes known of it."""
        item = self.known.get(label)
        known = [row for row in self.found.compared if row.node is item and not row.diverges]
        return label in self.right or any(goes_into_cache(row.label) for row in known)

    def home(self, label: str) -> str:
        """The block that a reference's value is made in, or an empty text where that cannot be told."""
        item = self.known.get(label)
        if item is not None and not numbered(label):
            return stem(self.module.places.get(item, (None, "main"))[1])
        return stem(label.removeprefix(scope_of(label)))

    def cleared(self, cause: Cause) -> dict[str, set[int | None]]:
        """The declarations on which values rest that are the reference's, and would not be with what a cause says,
        and the layers of these."""
        found: defaultdict[str, set[int | None]] = defaultdict(set)
        for item in self.found.order:
            if self.found.states[item] in (SAME, MATCHED) and item in self.shown:
                for name in ("slot", *OPS[item.op].attrs):
                    declared = self.source.attribute(item, name)
                    if declared is not None and (name != cause.attribute or self.matters(item, name, cause.value)):
                        found[declared[1]].add(self.module.places.get(item, (None, ""))[0])
        return found

    def matters(self, item: Node, attribute: str, value: Any) -> bool:
        """Whether an op that is right would be wrong with another attribute."""
        if value is None or attribute not in attributes(item):
            return True
        row = next((r for r in self.found.compared if r.node is item), None)
        lane = self.found.lane
        with np.errstate(all="ignore"):
            inputs = [lane.values[arg] for arg in item.args]
            changed = OPS[item.op].evaluate(lane.context, *inputs, **{**attributes(item), attribute: value})
        return distance(changed, lane.values[item]) > (row.allowed if row is not None else floor_of("f32"))

    def case(self, row: Compared, item: Node, stretch: list[Node]) -> Case:
        """All that may explain a diverging value."""
        lane = self.found.lane
        others: dict[str, Array] = {}
        for label, value in self.theirs.items():  # in the reference's order: what comes later can be no operand
            if value is self.theirs.get(row.label):
                break
            others[label] = value
        after = stretch[stretch.index(item) + 1 :]

        def later(known: Mapping[Node, Array]) -> Array:
            values = dict(known)
            for at in after:
                if at not in values and any(arg in values for arg in at.args):
                    values[at] = lane.evaluate(at, [values.get(arg, lane.values[arg]) for arg in at.args])
            found = values.get(row.node, row.ours)
            return found[-len(row.theirs) :]

        layer, _ = self.module.places.get(item, (None, ""))
        small = {
            bare(name): np.asarray(self.weight(name), np.float64)
            for name, info in self.file.header.tensors.items()
            if len(info.shape) <= 1 and scope_of(name) in ("", scope(layer))
        }
        inputs = [lane.values[arg] for arg in item.args]
        unknown = [label for label in self.reference.values if numbered(label) or label not in self.known]
        told = {label: self.reference.told(label) for label in unknown}
        there = {
            label: f"{label}` ({', '.join(str(about[key]) for key in ('op', 'where') if key in about)})"
            for label, about in told.items()
            if about.get("where")
        }
        touched = (lane.values[arg] for at in (item, *after) for arg in at.args)
        heavy = any(isinstance(value, LargeTensor) for value in touched)
        mine = {r.label: r.ours for r in self.found.compared if scope_of(r.label) == scope_of(row.label)}
        around = (others, there, mine, small, self.numbers(layer), self.ropes(small), self.epsilons, self.shown)
        return Case(item, row, inputs, after, later, *around, lane, heavy)

    def numbers(self, layer: int | None) -> dict[str, float]:
        """The model's numbers by name: keys of the file, and what the layer's kind says."""
        prefix = f"{self.file.header.architecture}."
        found = {
            key.removeprefix(prefix): float(value)
            for key, value in self.file.header.metadata.items()
            if key.startswith(prefix) and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, layers, entries in self.module.kinds:
            own = {key: float(v) for key, v in entries if isinstance(v, int | float) and not isinstance(v, bool)}
            found |= {f"{key} of {name} layers": value for key, value in own.items()} if layer in layers else {}
        return found

    def ropes(self, tensors: Mapping[str, Array]) -> list[tuple[Mapping[str, Any], Array | None]]:
        """Every combination of attributes and frequency factors that a rotation of this model may have."""
        nodes = [n for n in self.found.order if n.op == "rope"]
        settings = {tuple(sorted(n.attrs)): dict(OPS["rope"].attrs) | dict(n.attrs) for n in nodes}
        factors = [None, *(t for name, t in tensors.items() if "rope" in name)]
        return [(attrs, factor) for attrs in settings.values() for factor in factors]

    def hidden(self) -> list[Finding]:
        """Values on the way that differ where what follows agrees: a norm takes out a factor, but for its eps."""
        rows = {row.label: row for row in self.found.compared}
        order = list(self.theirs)
        for label in self.found.unmatched:
            later = (name for name in order[order.index(label) :] if name in rows and scope_of(name) == scope_of(label))
            name = next(later, None)
            if name is not None:
                row, told = rows[name], self.reference.told(label)
                at = f" ({told['where']})" if told.get("where") else ""
                text = f"on the way to `{name}` the reference computes `{label}`{at}, which equals no value of ours"
                return [Finding(row, row.node, self.source.own(row.node), Cause(text), (), (name,))]
        for item in self.found.order:
            if self.found.states[item] == UNKNOWN and recordable(item) and item in self.shown:
                after = next((r for r in self.found.compared if item in upstream(self.found, r.node)), None)
                if after is not None:
                    text = f"`{self.shown[item]}`, on the way to `{after.label}`, equals no value of the reference"
                    return [Finding(after, item, self.source.own(item), Cause(text), (), (after.label,))]
        return []
