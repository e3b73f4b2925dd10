"""Sizes that may wait for run time: an int, or an affine expression over symbols such as `T` and `C`.

`T` is the number of tokens of a step, `C` the capacity of a KV cache, `i` the layer in block form.

>>> T = symbol("T")
>>> str(T * 8 + 1), evaluate(T * 8 + 1, {"T": 2})
('8*T + 1', 17)
>>> T - T + 3
3
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Affine:
    """constant + sum of coefficient * symbol; always at least one symbol (build it with `affine`)."""

    terms: tuple[tuple[str, int], ...]
    constant: int = 0

    def __add__(self, other: Dim) -> Dim:
        return affine(_terms(self, other, 1), self.constant + _constant(other))

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return affine(_terms(self, other, -1), self.constant - _constant(other))

    def __rsub__(self, other: int) -> Dim:
        return self * -1 + other

    def __mul__(self, factor: int) -> Dim:
        return affine({name: value * factor for name, value in self.terms}, self.constant * factor)

    __rmul__ = __mul__

    def __str__(self) -> str:
        parts = [name if value == 1 else f"{value}*{name}" for name, value in self.terms]
        if self.constant:
            parts.append(str(self.constant))
        return " + ".join(parts)

    __repr__ = __str__


Dim = int | Affine


def symbol(name: str) -> Affine:
    return Affine(((name, 1),))


def affine(terms: Mapping[str, int], constant: int) -> Dim:
    """The canonical dimension: sorted symbols, no zero coefficients, a plain int when nothing is left."""
    kept = tuple(sorted((name, value) for name, value in terms.items() if value))
    return Affine(kept, constant) if kept else constant


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """The dimension with symbols replaced; symbols without a value stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = dim.constant
    for name, factor in dim.terms:
        total = total + values.get(name, symbol(name)) * factor
    return total


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The number a dimension stands for. Raises KeyError for a symbol without a value."""
    if isinstance(dim, int):
        return dim
    return dim.constant + sum(values[name] * factor for name, factor in dim.terms)


def product(dims: Iterable[Dim]) -> Dim:
    """The number of elements of a shape. Raises ValueError where two sizes are symbolic."""
    total: Dim = 1
    for dim in dims:
        if isinstance(total, int):
            total = dim * total
        elif isinstance(dim, int):
            total = total * dim
        else:
            raise ValueError(f"the product of {total} and {dim} is not affine")
    return total


def parse_dim(text: str) -> Dim:
    """The inverse of `str`."""
    total: Dim = 0
    for part in text.split(" + "):
        match = re.fullmatch(r"(?:(-?\d+)\*)?([A-Za-z]\w*)|(-?\d+)", part.strip())
        if match is None:
            raise ValueError(f"not a dimension: {text!r}")
        total = total + (int(match[3]) if match[3] else symbol(match[2]) * int(match[1] or 1))
    return total


def _terms(left: Affine, right: Dim, sign: int) -> dict[str, int]:
    sums = dict(left.terms)
    for name, value in right.terms if isinstance(right, Affine) else ():
        sums[name] = sums.get(name, 0) + sign * value
    return sums


def _constant(dim: Dim) -> int:
    return dim if isinstance(dim, int) else dim.constant
