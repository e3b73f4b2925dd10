"""Products of every format: in f32, in integers, on tensor cores; of experts; with the work that follows."""

from __future__ import annotations

import pytest
from programs import BLOCKS, NUMBERS, Program, T
from running import Running, error, values

from briolette.compiler.ops import node

# Activations of 16 bits are rounded in the exact program, too, but for ties.
BOUNDS = {"mapped": 2e-6, "integers": 1e-5, "tiles": 1e-5}


@pytest.mark.parametrize(("how", "rows"), [("mapped", 3), ("integers", 1), ("tiles", 70)])
def test_every_format(how, rows):
    """Odd numbers of weight rows, and of activation rows that do not fill a tile."""
    p = Program(seed=1)
    x = p.input("x", 96, 512, tokens=1 if rows == 1 else T)
    names = (*NUMBERS, *BLOCKS)
    wanted = [node("linear", x, p.weight(f"w.{name}", 37, 512, format=name)) for name in names]
    weights, form = "mapped" if how == "mapped" else "packed", "decode" if rows == 1 else "all"
    for name, pair in zip(
        names, values(p, wanted, rows, weights=weights, form=form, chunk=96, context=96), strict=True
    ):
        assert error(*pair) <= BOUNDS[how], name


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
    for weights, bound in (("mapped", 2e-6), ("packed", 5e-5)):
        running = Running(p, [down, hidden], form, weights=weights)
        assert all(error(*pair) <= bound for pair in running.step(rows))
        families = {kernel.family for kernel in running.made[form].made.kernels}
        assert ("gemm" in families) == (rows > 1 and weights == "packed")
        running.engine.close()


@pytest.mark.parametrize(("rows", "weights"), [(1, "packed"), (20, "packed"), (20, "mapped")])
def test_what_follows_a_product(rows, weights):
    """A gate and a residual, a softcap, and a part of a weight, of inputs that are parts of rows."""
    p = Program(seed=3)
    tokens = 1 if rows == 1 else T
    x, r = (p.input(name, 32, 128, tokens=tokens) for name in ("x", "r"))
    whole = p.weight("w", 96, 64, format="q8_0")
    half = node("slice", node("rms_norm", x, eps=1e-6), axis=1, start=64, stop=128)
    gate = node(
        "mul", node("gelu", node("linear", half, whole)), node("linear", half, p.weight("up", 96, 64, format="q4_0"))
    )
    part = node("slice", p.weight("v", 96, 128, format="q5_0"), axis=0, start=32, stop=64)
    capped = node("softcap", node("linear", x, part), cap=2.0)
    added = node("add", r, node("linear", x, p.weight("o", 128, 128, format="bf16")))
    for pair in values(p, [gate, capped, added], rows, weights=weights, form="decode" if rows == 1 else "all"):
        assert error(*pair) <= (2e-6 if weights == "mapped" else 1e-5)
