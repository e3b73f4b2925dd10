"""The likeliest tokens, kept by the kernel that makes logits, against all logits of the same step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from programs import FEW, HOST, PLAIN, Program, Target

import briolette
from briolette.backends.base import TellsLikeliest
from briolette.backends.cpu.engine import CpuEngine
from briolette.compiler.ir import Node
from briolette.compiler.ops import node

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models" / "gemma4_e2b.gguf"
ROWS, COLUMNS = 160, 64
SPECIAL = {3: np.nan, 17: np.inf, 40: -np.inf, 41: -np.inf, 159: np.nan}


def head(p: Program, format: str, weights: np.ndarray | None = None, rows: int = ROWS) -> Node:
    """softcap(x @ w), as heads are; x has a one in front, so that the first column of w is a logit's offset."""
    x = p.rng.normal(size=(8, COLUMNS)).astype(np.float32)
    x[:, 0] = 1
    w = p.weight("w", rows, COLUMNS, format=format) if weights is None else p.add("w", weights, (ROWS, COLUMNS))
    given = node("embed", p.add("x", x, x.shape), node("position", rows=1))
    return node("softcap", node("linear", given, w), cap=30.0)


def engine(p: Program, output: Node, threads: int, target: Target, **options: object) -> CpuEngine:
    made = p.engine(output, threads, target, **options)
    assert isinstance(made, TellsLikeliest)
    return made


def check(made: CpuEngine, position: int) -> None:
    logits = made.step([0], position)[0]
    missing = np.isnan(logits)
    order = sorted(range(len(logits)), key=lambda i: (not missing[i], 0 if missing[i] else -logits[i]))
    for count in (1, 2, 37, min(128, len(logits))):
        ids, found = made.likeliest(0, position, count)
        assert ids.tolist() == sorted(order[:count])
        np.testing.assert_array_equal(found, logits[ids])
    np.testing.assert_array_equal(made.step([0], position)[0], logits)


@pytest.mark.parametrize("target", FEW.values(), ids=FEW)
@pytest.mark.parametrize("threads", [1, 3, 12])
@pytest.mark.parametrize(
    ("format", "weights", "rows"),
    [("q8_0", "mapped", 161), ("q8_0", "packed", ROWS), ("q8_0", "packed", 48), ("f32", "mapped", 163)],
)
def test_the_likeliest_are_those_of_all_logits(
    format: str, weights: str, rows: int, threads: int, target: Target
) -> None:
    p = Program(seed=threads)
    made = engine(p, head(p, format, rows=rows), threads, target, weights=weights)
    for position in (0, 5):
        check(made, position)
    made.close()


@pytest.mark.parametrize("target", [HOST, PLAIN], ids=["host", "x86-64"])
@pytest.mark.parametrize("order", ["ties", "rising", "falling", "no numbers"])
def test_whatever_the_order_of_logits_is(order: str, target: Target) -> None:
    p = Program(seed=1)
    offsets = {"ties": np.arange(ROWS) % 3, "rising": np.arange(ROWS), "falling": -np.arange(ROWS)}
    weights = np.zeros((ROWS, COLUMNS), np.float32)
    weights[:, 0] = offsets.get(order, p.rng.normal(size=ROWS)) / 16
    if order == "no numbers":
        for row, value in SPECIAL.items():
            weights[row, 0] = value
    made = engine(p, head(p, "f32", weights), 2, target)
    check(made, 0)
    made.close()


def test_who_asks_for_more_is_told_nothing():
    p = Program()
    made = engine(p, head(p, "f32"), 2, HOST)
    assert made.likeliest(0, 0, 0) is None
    assert made.likeliest(0, 0, 129) is None
    made.close()


def test_logits_that_no_product_makes_have_no_list():
    p = Program()
    made = engine(p, node("mul", p.input("x", 4, 24, tokens=1), node("const", value=2.0)), 2, HOST)
    assert made.likeliest(0, 1, 1) is None
    assert made.step([0], 1).shape == (1, 24)
    made.close()


HOW = {
    "greedy": ({}, True),
    "penalty": ({"repeat_penalty": 1.3, "repeat_last_n": 8}, True),
    "top-k": ({"temperature": 1.0, "top_k": 20, "top_p": 0.9, "seed": 3}, True),
    "all": ({"temperature": 1.0, "top_p": 0.9, "seed": 3}, False),
    "rising": ({"repeat_penalty": 0.8}, False),
}


@pytest.mark.parametrize(("options", "fewer"), HOW.values(), ids=HOW)
def test_a_text_is_the_same_and_takes_no_other_logits(options, fewer, monkeypatch):
    model = briolette.load(ORACLE, context=64, threads=2)
    steps, step = [], model.engine.step

    def counted(tokens, *args, **named):
        steps.append(len(tokens))
        return step(tokens, *args, **named)

    monkeypatch.setattr(model.engine, "step", counted)
    found = list(model.generate([1, 5, 9], max_tokens=12, **options))
    assert len(found) == 12
    assert steps == [3] if fewer else [3] + [1] * 11
    monkeypatch.setattr(model.engine, "likeliest", lambda *args: None)
    assert list(model.generate([1, 5, 9], max_tokens=12, **options)) == found
    model.close()
