"""Detectors that compare the two values alone: one factor, one norm, another order, one more term."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .case import Array, Case, Cause, roots, scalars
from .measure import distance


def constant(case: Case) -> Cause | None:
    """Ours is the reference's times one number."""
    ratio = _ratio(case.ours, case.theirs)
    if ratio is None or not case.fits(case.ours / ratio):
        return None
    names = [*scalars(case.tensors), *roots(case.numbers)]
    for value, name in names:
        for factor, text in ((value, f"times {name}"), (1 / value, f"divided by {name}")):
            if abs(ratio / factor - 1) < 1e-4 and case.fits(case.ours / factor):
                tensor = name.strip("`") if name.startswith("`") else ""
                return Cause(f"ours is the reference's {text} (a factor of {ratio:.6g})", tensor=tensor)
    return Cause(f"ours is {ratio:.6g} times the reference's") if abs(ratio - 1) > 1e-3 else None


def channels(case: Case) -> Cause | None:
    """Ours is the reference's times a number for each channel: a weight too many, too few, or with 1 added."""
    width = case.theirs.shape[-1] if case.theirs.ndim else 0
    ours, theirs = case.ours.reshape(-1, width), case.theirs.reshape(-1, width)
    with np.errstate(all="ignore"):
        ratio = (ours * theirs).sum(0) / (theirs * theirs).sum(0)
    if not np.isfinite(ratio).all() or distance(theirs * ratio, ours) > case.enough:
        return None
    for name, weight in case.tensors.items():
        if weight.shape != (width,):
            continue
        with np.errstate(all="ignore"):
            known = {
                f"ours has `{name}` as 1 + w where the reference has w": (1 + weight) / weight,
                f"the reference has `{name}` as 1 + w where ours has w": weight / (1 + weight),
                f"ours multiplies by `{name}` here, the reference does not": weight,
                f"the reference multiplies by `{name}` here, ours does not": 1 / weight,
                f"ours multiplies by 1 + `{name}` here, the reference does not": 1 + weight,
            }
        for text, factor in known.items():
            if distance(ratio, factor) < 1e-4 and distance(theirs * factor, ours) <= case.enough:
                return Cause(text, tensor=name)
    return Cause(f"ours is the reference's times a number for each of the {width} channels, as a weight would be")


def normed(case: Case) -> Cause | None:
    """One side is the RMS norm of the other. (What is one already would only be divided by 1 once more.)"""
    eps = case.epsilons[0][0]
    pairs = (
        (case.ours, case.theirs, "the reference has an RMS norm here{}, ours has none"),
        (case.theirs, case.ours, "ours has an RMS norm here{}, the reference has none"),
    )
    for plain, scaled, text in pairs:
        unit = _unit(plain, eps)
        if distance(unit, scaled) <= case.enough:
            return Cause(text.format(", without a weight"))
        for name, weight in case.tensors.items():
            if weight.shape == plain.shape[-1:] and distance(unit * weight, scaled) <= case.enough:
                return Cause(text.format(f", with `{name}`"))
    return None


def shifted(case: Case) -> Cause | None:
    """The same rows, a few positions on."""
    rows = len(case.theirs)
    for by in (1, -1, 2, -2):
        ours, theirs = (case.ours[by:], case.theirs[:-by]) if by > 0 else (case.ours[:by], case.theirs[-by:])
        if rows > abs(by) + 1 and distance(ours, theirs) <= case.enough:
            return Cause(
                f"ours at position t is the reference's at t {'-' if by > 0 else '+'} {abs(by)}: a shift in position"
            )
    return None


def permuted(case: Case) -> Cause | None:
    """The same heads or channels in another order."""
    for axis, what in ((-2, "heads"), (-1, "channels")):
        if case.theirs.ndim < 1 - axis or case.theirs.shape[axis] < 2:
            continue
        ours, theirs = (np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in (case.ours, case.theirs))
        with np.errstate(all="ignore"):
            order = [int(np.argmin(np.abs(theirs - row).sum(1))) for row in ours] if len(ours) <= 4096 else []
        if sorted(order) != list(range(len(theirs))) or order == sorted(order):
            continue
        if distance(ours, theirs[order]) <= case.enough:
            return Cause(f"the same {what} in another order: ours are the reference's {_order(order)}")
    return None


def added(case: Case) -> Cause | None:
    """Ours is the reference's plus a multiple of another value: a residual too many, or scaled otherwise."""
    rest = case.ours - case.theirs
    for label, value in case.others.items():
        if value.shape != rest.shape or not np.issubdtype(value.dtype, np.floating):
            continue
        ratio = _ratio(rest, value)
        if ratio is None or abs(ratio) < 1e-3 or not case.fits(case.ours - ratio * value):
            continue
        names = [(1 - value, f"1 - {name}") for value, name in scalars(case.tensors)]
        named = next((f" = {name}" for factor, name in names if abs(ratio / factor - 1) < 1e-4), "")
        times = "" if abs(ratio - 1) < 1e-4 else f"{ratio:.6g}{named} times "
        return Cause(f"ours is the reference's plus {times}`{label}`")
    return None


def _ratio(a: Array, b: Array) -> float | None:
    with np.errstate(all="ignore"):
        ratio = float((a * b).sum() / (b * b).sum())
    return ratio if np.isfinite(ratio) and ratio != 0 else None


def _unit(x: Array, eps: float) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps))


def _order(order: Sequence[int]) -> str:
    half = len(order) // 2
    apart = [i // 2 + (i % 2) * half for i in range(2 * half)]
    if list(order) == apart:
        return "two halves, interleaved"
    if [apart.index(i) for i in range(2 * half)] == list(order):
        return "even ones first, then the odd ones"
    return ", ".join(map(str, order[:8])) + (", …" if len(order) > 8 else "")
