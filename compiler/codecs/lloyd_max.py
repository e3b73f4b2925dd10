"""Lloyd-Max quantisers of a coordinate of a random direction.

A uniform point on the sphere of radius sqrt(n) in n dimensions has coordinates of mean square 1; the density of one is
proportional to (1 - y^2/n)^((n-3)/2), which tends to the normal one as n grows. With y = sqrt(n) sin(angle) it becomes
cos(angle)^(n-2): smooth up to the ends, so Gauss-Legendre quadrature is exact to rounding for small n, too.

The best levels satisfy: each is the mean of its cell, and cells meet half-way between levels. For a log-concave
density there is one solution. Lloyd's iteration reaches it slowly where levels are many; Newton's takes a few steps.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_TAIL = 10.0  # how far the last cell is integrated: less than 1e-20 of the mass lies beyond
_TOLERANCE = 1e-13
_GRID = 4096


@cache
def positive_levels(bits: int, size: int) -> tuple[float, ...]:
    """The upper half of the 2**bits best levels for spheres in `size` dimensions, in order; the lower half mirrors it.

    Raises ValueError for less than one bit or two dimensions, and ArithmeticError if no solution is found.
    """
    if bits < 1 or size < 2:
        raise ValueError(f"there is no quantiser of {bits} bits in {size} dimensions")
    upper = _companded(2 ** (bits - 1), size)
    error, step = _residual(upper, size)
    for _ in range(100):
        if np.abs(error).max() < _TOLERANCE:
            return tuple(upper.tolist())
        # A whole step where it helps, else a part of one; levels stay in order.
        for part in 0.5 ** np.arange(30):
            moved = upper - part * step
            if moved[0] > 0 and np.all(np.diff(moved) > 0) and moved[-1] < math.sqrt(size):
                found = _residual(moved, size)
                if np.abs(found[0]).max() < np.abs(error).max():
                    break
        else:
            break  # rounding: nothing is better
        upper, (error, step) = moved, found
    if np.abs(error).max() > 1e-9:
        raise ArithmeticError(f"no Lloyd-Max quantiser of {bits} bits in {size} dimensions was found")
    return tuple(upper.tolist())


def levels(bits: int, size: int) -> F64:
    """The 2**bits best levels for spheres of radius sqrt(size) in `size` dimensions, rising, float64. See above."""
    upper = np.array(positive_levels(bits, size))
    return np.concatenate([-upper[::-1], upper])


def distortion(bits: int, size: int) -> float:
    """The mean squared error of the quantiser, relative to the mean square, exactly."""
    mass, first, _ = _moments(np.array(positive_levels(bits, size)), size)
    # Levels are the means of their cells, so E[(y - c)^2] = E[y^2] - E[c^2], and E[y^2] is 1.
    return float(1 - np.sum(first**2 / mass) / np.sum(mass))


def _companded(count: int, size: int) -> F64:
    """Levels with the density that is best for many: the cube root of the coordinate's."""
    angle = np.linspace(0, math.asin(min(1.0, _TAIL / math.sqrt(size))), _GRID)
    cumulated = np.cumsum(np.cos(angle) ** (size / 3))
    at = (np.arange(count) + 0.5) / count * cumulated[-1]
    upper: F64 = math.sqrt(size) * np.sin(np.interp(at, cumulated, angle))
    return upper


def _moments(upper: F64, size: int) -> tuple[F64, F64, F64]:
    """Each cell's mass and first moment, and the density at its edges, all up to one common factor."""
    radius = math.sqrt(size)
    inner = np.concatenate([[0.0], (upper[1:] + upper[:-1]) / 2])
    edges = np.append(inner, min(radius, inner[-1] + _TAIL))
    angles = np.arcsin(edges / radius)
    half = np.diff(angles)[:, None] / 2
    nodes = angles[:-1, None] + half * (1 + _NODES)
    weights = half * _WEIGHTS * np.cos(nodes) ** (size - 2)
    density = np.cos(angles) ** (size - 3) / radius  # of y, not of the angle
    density[-1] = 0.0  # the last edge does not move
    return weights.sum(axis=1), radius * (weights * np.sin(nodes)).sum(axis=1), density


def _residual(upper: F64, size: int) -> tuple[F64, F64]:
    """How far each level is from its cell's mean, and Newton's step: the better levels are upper - step."""
    mass, first, density = _moments(upper, size)
    means = first / mass
    edges = np.concatenate([[0.0], (upper[1:] + upper[:-1]) / 2, [0.0]])
    low = density[:-1] * (means - edges[:-1]) / mass / 2  # how a cell's mean follows the levels that make its edges
    high = density[1:] * (edges[1:] - means) / mass / 2
    low[0] = 0.0  # the edge at zero does not move
    error = upper - means
    return error, _tridiagonal(-low, 1 - low - high, -high, error)


def _tridiagonal(below: F64, diagonal: F64, above: F64, right: F64) -> F64:
    """The solution of a tridiagonal system; row i is below[i], diagonal[i], above[i].

    Written out, since a library's solver of full systems starts threads: they cost more than this on busy cores.
    """
    under, middle, over, values = (a.tolist() for a in (below, diagonal, above, right))
    for i in range(1, len(middle)):
        factor = under[i] / middle[i - 1]
        middle[i] -= factor * over[i - 1]
        values[i] -= factor * values[i - 1]
    values[-1] /= middle[-1]
    for i in reversed(range(len(middle) - 1)):
        values[i] = (values[i] - over[i] * values[i + 1]) / middle[i]
    return np.array(values)
