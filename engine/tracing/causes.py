"""Why a value may differ: a table of small detectors, each for one way in which ports go wrong.

A detector gets the case (the value as we compute it from the reference's values before it, the reference's, and all
around) and says what would make the two equal, or None. What it says has been tried out on the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .case import Case, Cause, Detector
from .exchanges import elsewhere, reordered, replaced, swapped
from .factors import added, channels, constant, normed, permuted, shifted
from .variants import caches, epsilon, operand, rotation, settings, skipped, unary, weighting

# Those that look at what the op to blame does: they find it too where it lies some ops before the compared value.
INSIDE: tuple[Detector, ...] = (
    epsilon,
    skipped,
    replaced,
    swapped,
    reordered,
    rotation,
    caches,
    settings,
    weighting,
    unary,
    operand,
)
# Those that say the most first.
DETECTORS: tuple[Detector, ...] = (
    epsilon,
    skipped,
    replaced,
    swapped,
    reordered,
    constant,
    rotation,
    caches,
    settings,
    channels,
    weighting,
    unary,
    operand,
    normed,
    shifted,
    permuted,
    added,
    elsewhere,
)


def likely(case: Case, detectors: Sequence[Detector] = DETECTORS) -> Cause | None:
    """The first explanation that makes both values equal."""
    shaped = case.theirs.shape == case.ours.shape and case.ours.size and np.issubdtype(case.ours.dtype, np.floating)
    if not shaped or not np.isfinite(case.ours).all() or not np.isfinite(case.theirs).all():
        return _unfinished(case)
    if case.heavy:
        detectors = [detect for detect in detectors if detect not in INSIDE]
    near = sorted(case.others, key=lambda label: label.split(".")[:2] != case.row.label.split(".")[:2])
    case = replace(case, others={label: case.others[label] for label in near})
    return next((cause for detect in detectors if (cause := detect(case)) is not None), None)


def _unfinished(case: Case) -> Cause | None:
    """What can be said of values that are no numbers."""
    if not np.issubdtype(case.ours.dtype, np.floating):
        return None
    for whose, value in (("the reference's", case.theirs), ("our", case.ours)):
        lost = int((~np.isfinite(value)).sum())
        if lost:
            return Cause(f"{lost} of {whose} {value.size} numbers are infinite or NaN")
    return None
