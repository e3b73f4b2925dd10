"""Sizes that wait for run time compute like the numbers they become."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from briolette.compiler import dims
from briolette.compiler.dims import evaluate, parse_dim, substitute, symbol

ints = st.integers(-50, 50)
affine = st.builds(lambda a, b, c: symbol("T") * a + symbol("C") * b + c, ints, ints, ints)
VALUES = {"T": 7, "C": 11}


@given(affine, affine, ints)
def test_arithmetic_commutes_with_evaluation(a, b, k):
    x, y = evaluate(a, VALUES), evaluate(b, VALUES)
    assert evaluate(a + b, VALUES) == x + y
    assert evaluate(a - b, VALUES) == x - y
    assert evaluate(a * k, VALUES) == x * k
    assert evaluate(substitute(a, {"T": 3}), VALUES) == evaluate(a, VALUES | {"T": 3})
    assert (a - b == 0) == (a == b)


@given(affine)
def test_text_round_trip(a):
    assert parse_dim(str(a)) == a


def test_doctest():
    assert doctest.testmod(dims).failed == 0
