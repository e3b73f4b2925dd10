"""Teacher forcing: each stretch of our program is run from the reference's own values and compared with its next.

So one wrong line shows as one wrong value, however far errors before it have grown. Four evaluations go through
the graph side by side, so that each weight is read once: ours from the tokens on in f64 and in f32, whose distance
says what rounding alone does along the way, and both again with the reference's values put in wherever it has some.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.labels import scope
from briolette.compiler.ops import OPS, attributes
from briolette.compiler.values import stem

from .measure import SLACK, choice_distance, distance, laid_out, transposed
from .record import head, last_rows, names_of, numbered, recordable
from .weights import products

Array = NDArray[Any]
MATCHING = 0.1  # the largest error at which a value of the reference may be taken for one of ours by its numbers
SAME, MATCHED, DIVERGED, UNKNOWN = "same", "matched", "diverged", "unknown"


class Lane:
    """One evaluation of a program, node by node; what a node is may be replaced before others read it."""

    def __init__(self, weight: Callable[[str], Any], tokens: Array, real: type[np.floating[Any]]):
        self.context = Interpreter(weight, real)
        self.context.tokens = tokens
        self.context.positions = np.arange(len(tokens), dtype=np.int32)
        self.context.sizes = {"T": len(tokens), "C": len(tokens)}
        self.values: dict[Node, Array] = {}

    def evaluate(self, item: Node, args: Sequence[Array] | None = None) -> Array:
        """A node's value from those of its operands, or from given ones."""
        given = [self.values[arg] for arg in item.args] if args is None else args
        with np.errstate(all="ignore"):
            found: Array = OPS[item.op].evaluate(self.context, *given, **attributes(item))
        return found

    def real(self, value: Array) -> Array:
        """A given value in this lane's arithmetic."""
        return value.astype(self.context.real) if np.issubdtype(value.dtype, np.floating) else value


@dataclass(frozen=True)
class Compared:
    """One label that both sides have. `local` is the error of the stretch that leads to it, `error` that of our
    whole program; `allowed` and `explained` are what rounding may do to each."""

    label: str
    node: Node
    error: float
    explained: float
    local: float
    allowed: float
    ours: Array  # from the reference's values before it
    theirs: Array
    note: str = ""

    @property
    def diverges(self) -> bool:
        return not self.local <= self.allowed


@dataclass
class Replay:
    """What a comparison found, label by label, in the program's order."""

    module: Module
    lane: Lane  # in f64, from the reference's values
    order: list[Node]
    compared: list[Compared] = field(default_factory=list)
    states: dict[Node, str] = field(default_factory=dict)
    # What the reference has and no value of ours equals: labels that we have not, and values that are only numbered.
    missing: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def replay(
    module: Module,
    weight: Callable[[str], Any],
    tokens: Array,
    theirs: Mapping[str, Array],
    floor: float,
    ours: Mapping[Node, Array] | None = None,
) -> Replay:
    """Compares a program with a reference's values, by label. `ours` are values that our program was seen to
    have; without, they are those of its evaluation in f32."""
    reals = (np.float64, np.float32)
    free = [Lane(weight, tokens, real) for real in reals]
    forced = [Lane(weight, tokens, real) for real in reals]
    order = topological(module.roots)
    found = Replay(module, forced[0], order)
    names = names_of(module)
    known = {label for labels in names.values() for label in labels}
    last = last_rows(module, len(tokens))
    tail = head(module) if last < len(tokens) else set()
    ends = {label for item in tail for label in names.get(item, ())}
    theirs = {label: value[-last:] if label in ends else value for label, value in theirs.items()}
    pool = {label: value for label, value in theirs.items() if numbered(label) or label not in known}
    matched: set[str] = set()
    stores: dict[Node, Array] = {}  # what the reference puts into the cache
    writes = {(n.args[0], n["plane"]): n for n in order if n.op == "cache_write"}
    unread = Counter(arg for n in order for arg in set(n.args))
    for item in order:
        _evaluate(item, (*free, *forced), last if item in tail else len(tokens))
        if item in stores:
            for lane in forced:
                args = [lane.real(stores[item]), *(lane.values[arg] for arg in item.args[1:])]
                lane.values[item] = lane.evaluate(item, args)
        own = [label for label in names.get(item, ()) if label in theirs and not numbered(label)]
        if not own:
            found.states[item] = UNKNOWN
            if recordable(item):
                layer = module.places.get(item, (None, ""))[0]
                near = [label for label in pool if scope_of(label) in ("", scope(layer))]
                label = _match(item, forced, {label: pool[label] for label in near}, floor)
                if label is not None:
                    matched.add(label)
                    found.states[item] = MATCHED
        else:
            seen = _see(item, free, forced, floor, None if ours is None else ours.get(item))
            judged: dict[int, Compared] = {}  # several names may have one value
            for label in own:
                judged.setdefault(id(theirs[label]), _compare(label, seen, theirs[label], item in tail))
            rows = [replace(judged[id(theirs[label])], label=label) for label in own]
            found.compared += rows
            found.states[item] = DIVERGED if all(row.diverges for row in rows) else SAME
            _force(item, rows, forced, stores, writes, result_label(module, item))
        unread.subtract(set(item.args))
        for arg in (item, *item.args):
            if unread[arg] <= 0:  # only the first forced evaluation is looked at later
                for lane in (*free, forced[1]):
                    lane.values.pop(arg, None)
    left = [label for label in pool if label not in matched]
    found.missing = [label for label in left if not numbered(label)]
    found.unmatched = [label for label in left if numbered(label)]
    return found


def _evaluate(item: Node, lanes: Sequence[Lane], rows: int) -> None:
    """A node in every lane, for the last rows; products with a weight all at once."""
    if item.op == "linear" and len(item.args) == 2:
        found = products([lane.values[item.args[0]][-rows:] for lane in lanes], lanes[0].values[item.args[1]])
        for lane, value in zip(lanes, found, strict=True):
            lane.values[item] = value
    else:
        for lane in lanes:
            lane.values[item] = lane.evaluate(item)


def _match(item: Node, forced: Sequence[Lane], pool: Mapping[str, Array], floor: float) -> str | None:
    """The value of the reference, of those without a name that we have, which one of ours equals."""
    exact, plain = (lane.values[item] for lane in forced)
    sized = {label: value for label, value in pool.items() if value.size == exact.size}
    if not sized:
        return None
    errors = {label: distance(exact.reshape(value.shape), value) for label, value in sized.items()}
    nearest = min(errors, key=errors.__getitem__)
    return nearest if errors[nearest] <= min(MATCHING, max(floor, SLACK * distance(plain, exact))) else None


@dataclass(frozen=True)
class _Seen:
    """A value in every evaluation, and how far rounding takes it."""

    item: Node
    exact: Array  # from the reference's values before it
    ours: Array  # as it was seen, or else in f32 from the tokens on
    allowed: float
    explained: float
    scores: tuple[Array, Array] | None  # what a choice of the largest was made of, in both

    def last(self, rows: int) -> _Seen:
        """The last tokens alone."""
        scores = None if self.scores is None else (self.scores[0][-rows:], self.scores[1][-rows:])
        return replace(self, exact=self.exact[-rows:], ours=self.ours[-rows:], scores=scores)


def _see(item: Node, free: Sequence[Lane], forced: Sequence[Lane], floor: float, seen: Array | None) -> _Seen:
    exact, plain = (lane.values[item] for lane in forced)
    whole, whole_plain = (lane.values[item] for lane in free)
    ours = whole_plain if seen is None else seen[-len(exact) :].reshape(exact.shape)
    allowed, explained = (max(floor, SLACK * distance(a, b)) for a, b in ((plain, exact), (whole_plain, whole)))
    scores = (forced[0].values[item.args[0]], free[0].values[item.args[0]]) if item.op == "top" else None
    return _Seen(item, exact, ours, allowed, explained, scores)


def _compare(label: str, seen: _Seen, theirs: Array, tail: bool) -> Compared:
    note = f"the last {len(theirs)} tokens alone" if tail else ""
    if theirs.shape[1:] == seen.exact.shape[1:] and len(theirs) < len(seen.exact) and (tail or len(theirs) == 1):
        seen, note = seen.last(len(theirs)), "the last token alone" if len(theirs) == 1 else note
    exact, shaped = seen.exact, laid_out(theirs, seen.exact.shape)

    def row(local: float, error: float, value: Array, note: str) -> Compared:
        own = exact if not local <= seen.allowed else value  # the same but for rounding: one is enough to keep
        return Compared(label, seen.item, error, seen.explained, local, seen.allowed, own, value, note)

    if seen.scores is not None and shaped is not None:
        here, there = seen.scores
        return row(choice_distance(here, exact, shaped), choice_distance(there, seen.ours, shaped), shaped, note)
    local = float("inf") if shaped is None else distance(exact, shaped)
    if not local <= seen.allowed:
        axes = transposed(exact, theirs, seen.allowed)
        if axes is not None:
            turned = theirs.transpose(np.argsort(axes))
            order = f"the reference has its axes in the order {list(axes)}"
            return row(distance(exact, turned), distance(seen.ours, turned), turned, order)
    if shaped is None:
        return row(local, local, theirs, f"ours is {list(exact.shape)}, but {list(theirs.shape)} in the reference")
    return row(local, distance(seen.ours, shaped), shaped, note)


def _force(
    item: Node,
    rows: Sequence[Compared],
    forced: Sequence[Lane],
    stores: dict[Node, Array],
    writes: Mapping[tuple[Node, str], Node],
    result: str,
) -> None:
    """Puts the reference's values in: of several labels of one value the one that leaves the block, and what goes into
    the cache where it is stored."""
    fitting = [row for row in rows if row.theirs.shape == forced[0].values[item].shape]
    for row in fitting:
        if goes_into_cache(row.label):
            stores[writes[item, row.label[-1]]] = row.theirs
    inside = sorted(
        (row for row in fitting if not goes_into_cache(row.label) or len(fitting) == 1),
        key=lambda row: (row.label != result, row.diverges),
    )
    for lane in forced if inside else ():
        lane.values[item] = lane.real(inside[0].theirs)


def result_label(module: Module, item: Node) -> str:
    """What a value would be called if its block returned it."""
    layer, block = module.places.get(item, (None, "main"))
    return f"{scope(layer)}{stem(block)}"


def scope_of(label: str) -> str:
    """The layer a label is in: `blk.3.`, or nothing."""
    match = re.match(r"blk\.\d+\.", label)
    return match[0] if match else ""


def goes_into_cache(label: str) -> bool:
    """Whether a label is of what goes into a cache, such as `blk.3.cache.v`."""
    return label.endswith((".cache.k", ".cache.v"))


def upstream(found: Replay, item: Node) -> list[Node]:
    """The stretch that leads to a value: itself, and what lies between it and values known to be the reference's."""
    inside: dict[Node, None] = {item: None}
    waiting = list(item.args)
    while waiting:
        at = waiting.pop()
        if at in inside or at not in found.states or found.states[at] != UNKNOWN:
            continue
        inside[at] = None
        waiting += at.args
    place = {n: i for i, n in enumerate(found.order)}
    return sorted(inside, key=place.__getitem__)
