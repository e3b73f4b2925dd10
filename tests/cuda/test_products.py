"""Products of every format: in f32, in integers, on tensor cores; of experts; with the work that follows."""

from __future__ import annotations

import numpy as np
import pytest
from programs import BLOCKS, NUMBERS, Program, T
from running import values

from briolette.compiler.ops import node

# Of 16 bits an activation keeps 14 in integers. In f16 it keeps 11, and so do weights.
BOUNDS = {"mapped": 2e-6, "integers": 2e-4, "tiles": 2e-3}


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(("how", "rows"), [("mapped", 3), ("integers", 1), ("tiles", 70)])
def test_every_format(how, rows):
    """Odd numbers of weight rows, and of activation rows that do not fill a tile."""
    p = Program(seed=1)
    x = p.input("x", 96, 512, tokens=1 if rows == 1 else T)
    wanted = [node("linear", x, p.weight(f"w.{name}", 37, 512, format=name)) for name in (*NUMBERS, *BLOCKS)]
    weights = "mapped" if how == "mapped" else "packed"
    form = "decode" if rows == 1 else "all"
    found = values(p, wanted, rows, weights=weights, form=form, chunk=96, context=96)
    for name, one, item in zip((*NUMBERS, *BLOCKS), found, wanted, strict=True):
        assert error(one, p.exact(item, rows)) <= BOUNDS[how], name


@pytest.mark.parametrize("rows", [1, 21])
def test_experts(rows):
    """Gate, up and activation, and pairs with rows of their own; with many tokens each expert takes its own
    together, and some have none."""
    p = Program(seed=2)
    tokens = 1 if rows == 1 else T
    x, ids = p.input("x", 32, 64, tokens=tokens), node("top", p.input("scores", 32, 7, tokens=tokens), k=3)
    gate, up = (p.weight(name, 7, 64, 64, format="q8_0") for name in ("gate", "up"))
    hidden = node("mul", node("silu", node("expert_linear", x, gate, ids)), node("expert_linear", x, up, ids))
    down = node("expert_linear", hidden, p.weight("down", 7, 48, 64, format="q5_1"), ids)
    form = "decode" if rows == 1 else "all"
    for weights, bound in (("mapped", 2e-6), ("packed", 3e-3)):
        found = values(p, [down, hidden], rows, weights=weights, form=form)
        for one, item in zip(found, (down, hidden), strict=True):
            assert error(one, p.exact(item, rows)) <= bound
