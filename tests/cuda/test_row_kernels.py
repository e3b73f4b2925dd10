"""Kernels over rows, and those of little work."""

from __future__ import annotations

import numpy as np
import pytest
from programs import BLOCKS, NUMBERS, Program, T
from running import Running, values
from test_rows import CHAINS, kept

from briolette.compiler.ops import node

from devices import opened


def close(found: np.ndarray, exact: np.ndarray, bound: float = 3e-6) -> None:
    assert found.shape == exact.shape
    assert np.all(np.abs(found - exact) <= bound * np.maximum(np.abs(exact), np.abs(exact).max()))


@pytest.mark.parametrize("columns", [1, 70, 600])
@pytest.mark.parametrize("seed", [0, 1])
def test_chains(columns, seed):
    """One thread's columns, a warp and more than a block's; threads in two orders."""
    p = Program(seed=columns)
    x, r, v = kept(p, "x", 9, columns), kept(p, "r", 9, columns), p.weight("v", columns)
    s = node("mul", kept(p, "s", 9, 1), node("const", value=0.7))
    wanted = [chain(x, v, r, s) for chain in CHAINS.values()]
    wanted += [node(op, node("mul", x, r)) for op in ("sum", "mean", "max")]
    for name, (found, exact) in zip(
        (*CHAINS, "sum", "mean", "max"), values(p, wanted, 9, device=opened(seed)), strict=True
    ):
        # A softmax of large values takes exponentials of rounded differences.
        close(found, exact, 3e-5 if "soft" in name or name == "share" else 3e-6)


def test_look_ups_and_rotation():
    p = Program(seed=5)
    position = node("position", rows=T)
    looked_up = [node("embed", p.weight(f"t.{name}", 12, 256, format=name), position) for name in (*NUMBERS, *BLOCKS)]
    scaled = node(
        "mul", node("embed", p.weight("small", 12, 64, format="q4_0"), node("tokens", rows=T)), node("const", value=8.0)
    )
    heads = node("reshape", kept(p, "heads", 12, 3 * 30), shape=(T, 3, 30))
    factors = p.weight("factors", 12)
    turned = [
        node("rotate", heads, node("rope_table", position, *given, theta=1e4, dims=24, scale=0.5), interleaved=flag)
        for given in ((), (factors,))
        for flag in (False, True)
    ]
    normed = node(
        "rotate",
        node("rms_norm", heads, eps=1e-6),
        node("rope_table", position, theta=100.0, dims=30),
        interleaved=False,
    )
    for found, exact in values(p, [*looked_up, scaled, *turned, normed], 11):
        close(found, exact, 1e-5)


def test_little_work():
    p = Program(seed=6)
    x = kept(p, "x", 9, 37)
    ids = node("top", x, k=5)
    rows = node("reshape", kept(p, "rows", 9, 5 * 20), shape=(T, 5, 20))
    heads = node("reshape", kept(p, "h", 9, 128), shape=(T, 2, 64))
    wanted = [
        ids,
        node("take", x, ids),
        node("take", p.weight("vector", 37), ids),
        node("combine", rows, node("softmax", node("take", x, ids))),
        node("group", ids, experts=37),
        *(node("hadamard", heads, inverse=inverse) for inverse in (False, True)),
        node("hadamard", heads, block=32),
        node("rotary_first", heads, p.weight("w", 64), pairs=4, half=32),
        node("rotary_first", heads, pairs=4, half=32, inverse=True),
    ]
    for found, exact in values(p, wanted, 9, device=opened(3)):
        close(found, exact) if found.dtype == np.float32 else np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_groups_of_many_tokens(seed):
    """Ids of every warp, most of them of one expert; experts that nobody chose; one token's alone."""
    p = Program(seed=8)
    scores = p.rng.normal(size=(90, 70)).astype(np.float32)
    scores[:, 40] += 4.0
    scores[:, 64:] -= 9.0
    scores = p.add("scores", scores, scores.shape)
    many = node("top", node("mul", node("embed", scores, node("position", rows=T)), node("const", value=2.0)), k=6)
    few = node("top", kept(p, "few", 90, 3), k=1)
    wanted = [many, node("group", many, experts=70), node("group", few, experts=3)]
    running = Running(p, wanted, device=opened(seed), chunk=90, context=90)
    for rows in (90, 37, 1):
        for found, exact in running.step(rows):
            np.testing.assert_array_equal(found, exact)
    running.engine.close()


def test_scores_that_are_no_numbers_come_first():
    """Places are in bounds whatever the scores are: experts are looked up by them."""
    p = Program(seed=7)
    scores = p.rng.normal(size=(9, 11)).astype(np.float32)
    scores[2], scores[3, 5:], scores[4, 0], scores[5] = np.nan, np.nan, -np.inf, -np.inf
    x = node("embed", p.add("scores", scores, (9, 11)), node("position", rows=T))
    for found, exact in values(p, [node("top", node("add", x, node("const", value=0.0)), k=7)], 9):
        np.testing.assert_array_equal(found, exact)
