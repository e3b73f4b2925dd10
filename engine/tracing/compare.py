"""Where a program and a reference part: the first value that rounding does not explain, its line, the likely cause.

How it is decided is in `replay.py`; which line is to blame, in `source.py`; why, in `causes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.backends.base import Options, checked
from briolette.backends.reading import token_ids
from briolette.compiler.dims import evaluate
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module, Node
from briolette.compiler.labels import labels, shown_labels
from briolette.compiler.ops import CACHE_DTYPES
from briolette.compiler.rules.cache import kept
from briolette.spec.tree import Architecture

from ..gguf import GgufFile
from .file import Recording
from .judge import Finding, Judge
from .measure import floor_of, laid_out
from .record import numbered, recordable
from .replay import UNKNOWN, Compared, replay
from .weights import reader

Array = NDArray[Any]


@dataclass
class Tracing:
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


def held_against(
    file: GgufFile,
    tree: Architecture,
    module: Module,
    reference: Recording,
    ours: Recording | None = None,
    tolerance: float | None = None,
    patterns: Sequence[str] = (),
) -> Tracing:
    """Compares a model's program, and a recording of it, with a reference. Without a recording, ours are the values of
    the program as it is defined, in f32: those of the reference backend. With glob patterns, only values of such
    names count; all others are still what these are computed from.

    Raises BrioletteError where the two cannot be compared: other tokens, no common label, the shapes of another model,
    unknown precision.
    """
    if ours is not None:
        same_tokens(ours.tokens, reference)
    floor = floor_of(reference.precision, tolerance)
    kv = str(reference.about.get("kv", "f32"))
    if kv not in CACHE_DTYPES:
        known_types = ", ".join(CACHE_DTYPES)
        raise BrioletteError(f"{reference.source} says its KV cache was of the type `{kv}`; there are {known_types}")
    program = kept(module, kv)
    known, theirs = labels(program), reference.named()
    if not any(label in known for label in theirs):
        raise BrioletteError(
            f"{reference.source} has no value that this program has too: it has {', '.join(list(theirs)[:4])} …, "
            f"the program {', '.join(list(known)[1:5])} …"
        )
    same_sizes(file.path.name, known, reference)
    checked(reference.tokens.tolist(), 0, token_ids(module), Options(context=len(reference.tokens)))

    def wanted(label: str) -> bool:
        return not patterns or any(fnmatchcase(label, pattern) for pattern in patterns)

    unused = [pattern for pattern in patterns if not any(fnmatchcase(label, pattern) for label in theirs)]
    if unused:
        raise BrioletteError(f"{reference.source} has no value that matches `{unused[0]}`")
    weight = reader(file.header.tensors, file.tensor_bytes)
    seen = {known[label]: value for label, value in ours.named().items() if label in known} if ours else None
    found = replay(program, weight, reference.tokens, theirs, floor, seen)
    judge = Judge(file, tree, program, reference, found, weight)
    rows = [row for row in found.compared if wanted(row.label)]
    if not rows:
        raise BrioletteError(f"{reference.source} has none of the values of this program that were asked for")
    result = Tracing(program, tree, reference, floor, rows, judge.findings(wanted=wanted), found.missing)
    windows = [n["window"] for n in found.order if n.op == "attend" and n.get("window") is not None]
    if windows and len(reference.tokens) <= min(windows):
        result.notes.append(
            f"this model has a window of {min(windows)} tokens, and the prompt has {len(reference.tokens)}: nothing "
            "beyond the window was tried"
        )
    if patterns:
        result.missing = []
    elif reference.about.get("complete"):
        shown = shown_labels(program)
        unknown = (item for item in shown if recordable(item) and found.states[item] == UNKNOWN)
        result.extra = [shown[item] for item in unknown if not numbered(shown[item])]
        if not result.findings:
            result.findings = judge.hidden()
    if ours is not None and not result.findings and any(not row.error <= row.explained for row in rows):
        own = kept(module, str(ours.about.get("kv", kv)))
        again = replay(own, weight, reference.tokens, ours.named(), floor_of(ours.precision))
        judge = Judge(file, tree, own, ours, again, weight)
        result.findings = [replace(finding, side="backend") for finding in judge.findings(causes=False, wanted=wanted)]
    return result


def same_sizes(model: str, known: Mapping[str, Node], reference: Recording) -> None:
    """Raises BrioletteError where most values have other shapes than the reference's: it is of another model."""
    sizes = {"T": len(reference.tokens), "C": len(reference.tokens)}
    others: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    common = [label for label in reference.values if label in known and not numbered(label)]
    for label in common:
        shape = tuple(evaluate(dim, sizes) for dim in known[label].shape)
        theirs = reference.values[label].shape
        cut = theirs[1:] == shape[1:] and theirs[0] < shape[0]  # the last tokens alone
        if not cut and sorted(theirs) != sorted(shape) and laid_out(reference.values[label], shape) is None:
            others[label] = theirs, shape
    told = reference.about.get("model", model)
    if len(others) > len(common) * (0.5 if told == model else 0.1):
        label, (theirs, shape) = next(iter(others.items()))
        named = "" if told == model else f", of {told}"
        there, here = ("x".join(map(str, sizes)) for sizes in (theirs, shape))
        raise BrioletteError(
            f"{reference.source} is a trace of another model than {model}{named}: {len(others)} of {len(common)} "
            f"values have other shapes, such as `{label}`, {there} there and {here} here"
        )


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
