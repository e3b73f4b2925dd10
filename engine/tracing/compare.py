"""Where a program and a reference part: the first value that rounding does not explain, its line, the likely cause.

How it is decided is in `replay.py`; which line is to blame, in `source.py`; why, in `causes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.backends.base import checked, token_ids
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module, Node
from briolette.compiler.labels import labels, shown_labels
from briolette.compiler.ops import OPS
from briolette.compiler.plan import is_view
from briolette.compiler.rewrite import rewrite
from briolette.compiler.rules.cache import cache_dtype
from briolette.compiler.values import bare
from briolette.spec.tree import Architecture

from ..gguf import GgufFile
from .case import Case, Cause
from .causes import INSIDE, likely
from .file import Recording
from .measure import floor_of
from .record import numbered, recordable
from .replay import MATCHED, SAME, UNKNOWN, Compared, Replay, replay, result_label, scope_of, stored, upstream
from .source import Place, Source
from .weights import LargeTensor, reader

Array = NDArray[Any]
EXPLAINED_LINES = 8  # lines for which a cause is looked for


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
    labels: tuple[str, ...] = ()
    side: str = "program"


@dataclass
class Comparison:
    """All labels that both sides have, and what was found, first place first."""

    module: Module
    tree: Architecture
    reference: Recording
    floor: float
    rows: list[Compared]
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # labels that only the reference has
    extra: list[str] = field(default_factory=list)  # labels that only we have
    notes: list[str] = field(default_factory=list)


def compare(
    file: GgufFile,
    tree: Architecture,
    module: Module,
    reference: Recording,
    ours: Recording | None = None,
    tolerance: float | None = None,
) -> Comparison:
    """Compares a model's program, and a recording of it, with a reference. Without a recording, ours are the values of
    the program as it is defined, in f32: those of the reference backend.

    Raises BrioletteError where the two cannot be compared: other tokens, no common label, unknown precision.
    """
    if ours is not None:
        same_tokens(ours.tokens, reference)
    checked(reference.tokens.tolist(), 0, token_ids(module), len(reference.tokens))
    floor = floor_of(reference.precision, tolerance)
    kv = str(reference.about.get("kv", "f32"))
    program = rewrite(module, cache_dtype(kv))
    known, theirs = labels(program), reference.named()
    if not any(label in known for label in theirs):
        raise BrioletteError(
            f"{reference.source} has no value that this program has too: it has {', '.join(list(theirs)[:4])} …, "
            f"the program {', '.join(list(known)[1:5])} …"
        )
    weight = reader(file.header.tensors, file.tensor_bytes)
    seen = {known[label]: value for label, value in ours.named().items() if label in known} if ours else None
    found = replay(program, weight, reference.tokens, theirs, floor, seen)
    judge = Judge(file, tree, program, reference, found, weight)
    result = Comparison(program, tree, reference, floor, found.compared, judge.findings(), found.missing)
    if reference.about.get("complete"):
        shown = shown_labels(program)
        unknown = (item for item in shown if recordable(item) and found.states[item] == UNKNOWN)
        result.extra = [shown[item] for item in unknown if not numbered(shown[item])]
        if not result.findings:
            result.findings = judge.hidden()
    if ours is not None and not result.findings and any(not row.error <= row.explained for row in found.compared):
        own = rewrite(module, cache_dtype(str(ours.about.get("kv", kv))))
        again = replay(own, weight, reference.tokens, ours.named(), floor_of(ours.precision))
        judge = Judge(file, tree, own, ours, again, weight)
        result.findings = [replace(finding, side="backend") for finding in judge.findings(causes=False)]
    return result


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

    def findings(self, causes: bool = True) -> list[Finding]:
        """The diverging values, those of one line together."""
        explained: dict[tuple[int, str, str], tuple[Place | None, Cause | None]] = {}
        grouped: dict[tuple[int, str, str], Finding] = {}
        counted: set[tuple[Node, str]] = set()
        for row in self.found.compared:
            if not row.diverges:
                continue
            stretch = upstream(self.found, row.node)
            item = self.culprit(stretch)
            key = (self.source.line(item), "" if row.node is item else item.op, self.role(row))
            if key not in explained:
                wanted = causes and len(explained) < EXPLAINED_LINES
                cause = None
                if wanted and not self.reference.about.get("complete"):
                    item, cause = self.search(row, stretch)
                if wanted and cause is None:
                    cause = likely(self.case(row, item, stretch))
                explained[key] = self.blame(row, item, stretch, cause), cause
            place, cause = explained[key]
            through = self.through(row, stretch)
            if key in grouped and (row.node, key[2]) not in counted:
                grouped[key] = replace(grouped[key], labels=(*grouped[key].labels, row.label))
            elif key not in grouped:
                grouped[key] = Finding(row, item, place, cause, through, (row.label,))
            counted.add((row.node, key[2]))
        return list(grouped.values())

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
        if passed_on and stored(row.label):
            write = next(n for n in self.found.order if n.op == "cache_write" and n.args[0] is row.node)
            return source.stored(write) or own
        if passed_on and row.label == result_label(self.module, row.node):
            return source.returned(row.node) or own
        if cause is None:
            return own
        if cause.tensor:
            layer, _ = self.module.places.get(item, (None, ""))
            used = self.known.get(cause.tensor if layer is None else f"blk.{layer}.{cause.tensor}")
            return source.own(used) if used in stretch else own
        if cause.operand is not None:
            return source.operand(item, cause.operand, self.agrees, self.home(cause.reads))
        declared = source.attribute(item, cause.attribute) if cause.attribute else None
        if cause.extra:
            declared = source.condition(item)
        if declared is None or declared[1] in self.cleared():
            return own
        return Place(declared[0].span, f"line {source.line(item)} takes `{declared[1].split('[')[0]}` from here")

    def agrees(self, label: str) -> bool:
        """Whether the reference has our value of this name, or what the block makes known of it."""
        item = self.known.get(label)
        known = [row for row in self.found.compared if row.node is item and not row.diverges]
        return label in self.right or any(stored(row.label) for row in known)

    def home(self, label: str) -> str:
        """The block that a reference's value is made in, or an empty text where that cannot be told."""
        item = self.known.get(label)
        if item is not None and not numbered(label):
            return self.module.places.get(item, (None, "main"))[1].split(".")[0]
        return label.removeprefix(scope_of(label)).split(".")[0]

    def cleared(self) -> set[str]:
        """The declarations on which values rest that are the reference's."""
        found = set()
        for item in self.found.order:
            if self.found.states[item] in (SAME, MATCHED) and item in self.shown:
                for name in ("slot", *OPS[item.op].attrs):
                    declared = self.source.attribute(item, name)
                    if declared is not None:
                        found.add(declared[1])
        return found

    def case(self, row: Compared, item: Node, stretch: list[Node]) -> Case:
        """All that may explain a diverging value."""
        lane = self.found.lane
        others: dict[str, Array] = {}
        for label, value in self.theirs.items():  # in the reference's order: what comes later can be no operand
            if value is self.theirs.get(row.label):
                break
            others[label] = value
        after = stretch[stretch.index(item) + 1 :]

        def again(value: Array) -> Array:
            values = {item: value}
            for at in after:
                if any(arg in values for arg in at.args):
                    values[at] = lane.evaluate(at, [values.get(arg, lane.values[arg]) for arg in at.args])
            found = values.get(row.node, row.ours)
            return found[-1:] if len(row.theirs) == 1 else found

        layer, _ = self.module.places.get(item, (None, ""))
        scope = "" if layer is None else f"blk.{layer}."
        small = {
            bare(name): np.asarray(self.weight(name), np.float64)
            for name, info in self.file.header.tensors.items()
            if len(info.shape) <= 1 and scope_of(name) in ("", scope)
        }
        inputs = [lane.values[arg] for arg in item.args]
        unknown = [label for label in self.reference.values if numbered(label) or label not in self.known]
        told = {label: self.reference.told(label) for label in unknown}
        there = {
            label: f"{label}` ({about['op']}, {about['where']})" for label, about in told.items() if about.get("where")
        }
        touched = (lane.values[arg] for at in (item, *after) for arg in at.args)
        heavy = any(isinstance(value, LargeTensor) for value in touched)
        around = (others, there, small, self.numbers(layer), self.ropes(small), self.shown)
        return Case(item, row, inputs, again, *around, lane, heavy)

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


def same_tokens(ids: Array, reference: Recording) -> None:
    """Raises BrioletteError unless the reference is a recording of these tokens."""
    if not np.array_equal(ids, reference.tokens):
        raise BrioletteError(
            f"the traces are of different tokens: {_tokens(ids)} here, "
            f"{_tokens(reference.tokens)} in {reference.source}"
        )


def _tokens(ids: Array) -> str:
    shown = ", ".join(map(str, ids[:6]))
    return f"{len(ids)} ({shown}{', …' if len(ids) > 6 else ''})"
