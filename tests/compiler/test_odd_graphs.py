"""Odder random programs: what a decoder has not had yet must be right as well, or be refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from briolette.compiler.dims import symbol
from briolette.compiler.header import TensorInfo
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module, Type
from briolette.compiler.ops import node
from briolette.compiler.pipeline import Form, Trace, optimise
from briolette.compiler.plan import plan
from briolette.compiler.verify import VerifyError, verify

sys.path.insert(0, str(Path(__file__).parent))
from odd_programs import odd_programs
from test_graphs import FORMS, Wanted, check_on_cpu, engine_of, evaluated, overlaps

from blame import Blame
from strategies import Run

T = symbol("T")
ordinary = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(ordinary, max_examples=60)
@given(odd_programs())
def test_every_stage_of_every_form_keeps_the_value(run):
    wanted = Wanted(run)
    for form in FORMS:
        trace = Trace()
        optimise(run.module, form, trace, Blame(run.weights, run.tokens[: form.tokens]))
        for stage, module in trace.modules.items():
            assert wanted.is_met(evaluated(run, module.outputs, form.tokens or 1 << 30)), f"{stage} of {form}"
        assert not overlaps(plan(trace.modules["fused"], form.tokens or 5))


@settings(ordinary, max_examples=10)
@given(odd_programs(steps=4))
def test_the_cpu_engine_computes_what_the_interpreter_does(run):
    check_on_cpu(run)


class Small:
    """Embedded tokens x [T, 6] and weights, for programs written out by hand."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in {"e": (7, 6), "w": (6, 6)}.items()}
        self.w = self.weight("w", 6, 6)
        self.x = node("embed", self.weight("e", 7, 6), node("tokens", rows=T))
        self.position = node("position", rows=T)

    def weight(self, name: str, *shape: int):
        return node("weight", name=name, type=Type(shape, "f32"))

    def run(self, out) -> Run:
        tensors = tuple(TensorInfo(name, array.shape, "f32") for name, array in self.weights.items())
        return Run(Module("m", "unrolled", (out,), tensors=tensors), self.weights, np.array([1, 5, 2], np.int32))


def right(run: Run, ours: np.ndarray) -> bool:
    wanted = evaluated(run, run.module.outputs, real=np.float64)
    return bool(np.allclose(ours, wanted[-len(ours) :], rtol=1e-5, atol=1e-5))


def test_what_mixes_tokens_is_computed_for_all_of_them():
    small = Small()
    x = small.x
    column = node("reshape", node("sum", x), shape=(T,))
    spread = {
        "a row op along tokens": node("mul", x, node("reshape", node("softmax", column), shape=(T, 1))),
        "a norm along tokens": node("mul", x, node("reshape", node("rms_norm", column, eps=1e-6), shape=(T, 1))),
        "a sum of tokens": node("mul", x, node("sum", column)),
        "rows that are no tokens": node("reshape", node("gelu", node("reshape", x, shape=(T * 6,))), shape=(T, 6)),
        "a certain token": node("add", x, node("slice", x, axis=0, start=0, stop=1)),
    }
    for what, out in spread.items():
        run = small.run(out)
        trace = Trace()
        optimise(run.module, Form(), trace)
        for stage, module in trace.modules.items():
            assert right(run, evaluated(run, module.outputs)), f"{what}, {stage}"


def test_views_that_kernels_cannot_walk_are_copied():
    """The first was multiplied as if its values lay side by side, without a word."""
    small = Small()
    heads = node("reshape", small.x, shape=(T, 3, 2))
    column = node("reshape", node("slice", heads, axis=2, start=1, stop=2), shape=(T, 3))
    some = node("slice", heads, axis=1, start=0, stop=2)
    first = node("slice", node("linear", small.x, small.w), axis=0, start=0, stop=1)
    cases = {
        "a product of a column": (node("linear", column, small.weight("n", 3, 3)), 1),
        "an output that is a part": (node("slice", small.x, axis=1, start=1, stop=4), 1),
        "part of the heads": (node("reshape", node("gelu", some), shape=(T, 4)), 1),
        "heads and columns": (
            node("reshape", node("softmax", node("slice", some, axis=2, start=0, stop=1)), shape=(T, 2)),
            2,
        ),
        "rows that lie evenly": (
            node("linear", node("slice", small.x, axis=1, start=0, stop=4), small.weight("m", 3, 4)),
            0,
        ),
        "a token of many": (node("add", small.x, first), 0),
    }
    small.weights |= {"n": np.eye(3, dtype=np.float32), "m": np.ones((3, 4), np.float32)}
    for what, (out, copies) in cases.items():
        run = small.run(out)
        trace = Trace()
        optimise(run.module, Form(logits="all"), trace)
        assert trace.hits["fused"]["copy-view"] == copies, what
        engine = engine_of(run)
        try:
            assert right(run, engine.step(run.tokens, 0, "all")), what
            assert right(run, engine.step(run.tokens, 0)), what
        finally:
            engine.close()


def test_a_value_two_kernels_compute_anew_is_not_lost():
    """Sums over rows of two lengths around a value with several readers: the fuser forgot the inner one."""
    small = Small()
    narrow = node("sub", node("max", small.x), node("mean", small.x))
    again = node("sub", narrow, node("max", narrow))
    run = small.run(node("add", node("mul", small.x, again), narrow))
    for form in FORMS:
        module = optimise(run.module, form)
        assert right(run, evaluated(run, module.outputs, form.tokens or 1 << 30))


def test_numbers_that_only_compare_equal_are_different_nodes():
    x = node("param", name="x", type=Type((6,)))
    assert node("const", value=0.0) is not node("const", value=-0.0)
    assert node("const", value=float("nan")) is node("const", value=float("nan"))
    assert node("reshape", x, shape=(1, 6)) is not node("reshape", x, shape=(True, 6))
    value = Interpreter(dict().__getitem__).evaluate([node("const", value=-0.0)], {})[0]
    assert np.signbit(value)


def test_attention_reads_whole_cache_planes_only():
    small = Small()
    heads = node("reshape", small.x, shape=(T, 1, 6))
    k, v = (node("cache_write", heads, small.position, slot=0, plane=plane) for plane in "kv")
    part = node("slice", k, axis=2, start=0, stop=3)
    q = node("slice", heads, axis=2, start=0, stop=3)
    for what, args in {"slice": (q, part, v), "reshape": (heads, heads, heads)}.items():
        out = node("attend", *args, small.position, scale=1.0)
        with pytest.raises(VerifyError, match=f"after simplified: attend: k is a {what}"):
            verify(small.run(out).module, "simplified")
