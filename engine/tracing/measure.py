"""How far two values are apart, and how far rounding may bring them."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError

Array = NDArray[Any]

# What one stretch of the graph, computed twice from the same inputs, differs by at least: relative, by the
# precision that the reference was computed in. Measured: f32 kernels, ours and torch's, stay below 1e-6 for short
# prompts, ours below 2e-6 with 302 tokens; llama.cpp's GELU from a table of f16 below 4e-4, its activations of 8 bits
# below 4e-2 on Gemma 3 270M.
FLOORS = {"f64": 5e-6, "f32": 5e-6, "f16": 4e-3, "bf16": 3e-2, "q8": 8e-2}
# How many times the distance between our own f32 and f64 another order of the same sums may take.
SLACK = 10.0


def floor_of(precision: str, tolerance: float | None = None) -> float:
    """The least error that counts, for a reference of a precision, unless one is given."""
    if tolerance is not None:
        if not 0 <= tolerance < 1:
            raise BrioletteError(f"a tolerance is a relative error from 0 to below 1, such as 1e-3, not {tolerance:g}")
        return tolerance
    if precision not in FLOORS:
        raise BrioletteError(
            f"the reference says its precision is `{precision}`; known are {', '.join(FLOORS)}. "
            "Give a --tolerance, such as 1e-3"
        )
    return FLOORS[precision]


def distance(ours: Array, theirs: Array) -> float:
    """The norm of the difference over the norm of `theirs`. NaN equals NaN; anything else beside one is infinite."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    with np.errstate(all="ignore"):
        found, norm = float(np.linalg.norm(ours - theirs)), float(np.linalg.norm(theirs))
        if np.isfinite(found) and np.isfinite(norm) and norm:
            return found / norm
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        apart = np.where(same, 0.0, ours - theirs)
        if not np.isfinite(apart).all():
            return float("inf")
        norm = float(np.linalg.norm(theirs[np.isfinite(theirs)]))
        found = float(np.linalg.norm(apart))
    return found / norm if norm else (float("inf") if found else 0.0)


def choice_distance(scores: Array, ours: Array, theirs: Array) -> float:
    """How far two choices of the largest scores are apart: by what was chosen, whatever its order, so that ties count
    for nothing."""
    if theirs.min() < 0 or theirs.max() >= scores.shape[-1]:
        return float("inf")
    taken = [np.sort(np.take_along_axis(scores, ids.astype(np.int64), -1), -1) for ids in (ours, theirs)]
    return distance(*taken)


def laid_out(theirs: Array, shape: tuple[int, ...]) -> Array | None:
    """A reference's value in our shape, where it has as many elements."""
    if theirs.shape == shape:
        return theirs
    squeezed = tuple(n for n in theirs.shape if n != 1) == tuple(n for n in shape if n != 1)
    rows = theirs.shape[:1] == shape[:1]
    return theirs.reshape(shape) if theirs.size == int(np.prod(shape)) and (rows or squeezed) else None


def transposed(ours: Array, theirs: Array, allowed: float) -> tuple[int, ...] | None:
    """The order of axes in which a reference keeps our value, if there is one."""
    for axes in permutations(range(ours.ndim)):
        turned = ours.transpose(axes)
        if list(axes) != sorted(axes) and turned.shape == theirs.shape and distance(turned, theirs) <= allowed:
            return axes
    return None
