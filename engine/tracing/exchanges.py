"""Detectors that try what is there in another order, or something else in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from briolette.compiler.ops import OPS

from .case import Array, Case, Cause

Function = Callable[[Array], Array]

# The ops that are a function of one number.
CURVES = [name for name, op in OPS.items() if op.operands == ("x",) and "elementwise" in op.traits and not op.attrs]

# Functions that are no ops of ours but may be another engine's.
FOREIGN: Mapping[str, Function] = {
    "gelu by the error function": lambda x: x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / 2**0.5)) / 2,
    "x * sigmoid(1.702 x)": lambda x: x / (1 + np.exp(-1.702 * x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


def replaced(case: Case) -> Cause | None:
    """The reference has another function in the place of this one."""
    if case.item.op not in CURVES:
        return None
    context, x = case.lane.context, case.inputs[0]
    others: dict[str, Function] = {name: partial(OPS[name].evaluate, context) for name in CURVES}
    with np.errstate(all="ignore"):
        for name, function in (others | dict(FOREIGN)).items():
            if name != case.item.op and case.fits(case.again(function(x))):
                return Cause(f"the reference has {name} here, ours {case.item.op}")
    return None


def swapped(case: Case) -> Cause | None:
    """The reference applies this function to the other of two values that are then put together."""
    if case.item.op not in CURVES:
        return None
    for at in case.after:
        if len(at.args) != 2 or case.item not in at.args:
            continue
        index = 1 - at.args.index(case.item)
        own, other = case.inputs[0], case.lane.values[at.args[index]]
        if not isinstance(other, np.ndarray) or other.shape != own.shape:
            continue
        args = {index: own, 1 - index: case.lane.evaluate(case.item, [other])}
        if case.fits(case.later({at: case.lane.evaluate(at, [args[0], args[1]])})):
            given = f"{case.item.op} of {case.called(at.args[index])}"
            return Cause(f"the reference has {given} here, ours of {case.name(0)}: the two are swapped")
    return None


def reordered(case: Case) -> Cause | None:
    """The reference has this op and the next in the other order."""
    at = next((n for n in case.after if case.item in n.args), None)
    if at is None or at.args[0] is not case.item or at.args.count(case.item) > 1 or at.op == case.item.op:
        return None
    if not case.item.args or not (case.item.args[0].shape == case.item.shape == at.shape):
        return None
    first = case.lane.evaluate(at, [case.inputs[0], *(case.lane.values[arg] for arg in at.args[1:])])
    if case.fits(case.later({at: case.lane.evaluate(case.item, [first, *case.inputs[1:]])})):
        return Cause(f"the reference has {at.op} before {case.item.op} here, ours after it")
    return None


def elsewhere(case: Case) -> Cause | None:
    """The reference has here what ours has elsewhere."""
    for label, value in case.mine.items():
        if label != case.row.label and case.fits(value):
            return Cause(f"the reference has here what ours has as `{label}`")
    return None
