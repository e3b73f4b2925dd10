"""Random programs through the whole pipeline: every stage, every form and every backend says the same."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from briolette.backends.base import Options, Weights
from briolette.backends.cpu.engine import CpuEngine
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Node, topological
from briolette.compiler.ops import node
from briolette.compiler.pipeline import Form, Trace, optimise
from briolette.compiler.plan import Plan, base, is_view, plan
from briolette.compiler.rewrite import op, rewrite, rule

sys.path.insert(0, str(Path(__file__).parent))
from blame import Blame
from strategies import Run, programs

FORMS = [Form(), Form(tokens=1), Form(logits="all")]
ordinary = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def evaluated(run: Run, outputs: tuple[Node, ...], one_by_one: bool = False) -> np.ndarray:
    interpreter = Interpreter(run.weights.__getitem__)
    if not one_by_one:
        return interpreter.step(outputs, run.tokens, 0)[0]
    return np.concatenate([interpreter.step(outputs, [t], i)[0] for i, t in enumerate(run.tokens)])


def close(ours: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.allclose(ours, wanted, rtol=2e-4, atol=2e-5))


@ordinary
@given(programs())
def test_every_stage_of_every_form_keeps_the_value(run):
    wanted = evaluated(run, run.module.outputs)
    for form in FORMS:
        trace = Trace()
        optimise(run.module, form, trace, watch=Blame(run.weights, run.tokens) if form.tokens is None else None)
        for stage, module in trace.modules.items():
            ours = evaluated(run, module.outputs, one_by_one=form.tokens == 1)
            assert close(ours, wanted[-len(ours) :]), f"{stage} of {form}"


def overlaps(found: Plan) -> list[tuple[Node, Node]]:
    buffers = list(found.buffers.values())
    return [
        (a.node, b.node)
        for i, a in enumerate(buffers)
        for b in buffers[i + 1 :]
        if a.first <= b.last and b.first <= a.last and a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes
    ]


@ordinary
@given(programs())
def test_plans_are_sound(run):
    for form, rows in zip(FORMS, (5, 1, 5), strict=True):
        found = plan(optimise(run.module, form), rows)
        waves = {step.node: step.wave for step in found.steps}
        assert not overlaps(found)
        assert all(b.offset % 64 == 0 and b.offset + b.bytes <= found.arena for b in found.buffers.values())
        for item, wave in waves.items():
            for arg in item.args:
                source = base(arg)
                assert source not in waves or waves[source] < wave
                if source in found.buffers:
                    assert found.buffers[source].last >= wave
        nodes = [n for n in topological(found.module.roots) if not is_view(n)]
        assert set(waves) <= set(nodes)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(steps=6))
def test_the_cpu_engine_computes_what_the_interpreter_does(run):
    wanted = evaluated(run, run.module.outputs)
    weights = Weights(lambda name: run.weights[name].reshape(-1).view(np.uint8))
    engine = CpuEngine(run.module, weights, Options(context=16, threads=2, chunk=3))
    try:
        assert close(engine.step(run.tokens, 0, "all"), wanted)
        assert close(engine.step(run.tokens, 0), wanted[-1:])
        singles = [engine.step([t], i) for i, t in enumerate(run.tokens)]
        assert close(np.concatenate(singles), wanted)
    finally:
        engine.close()


def test_blame_names_the_rule_that_is_wrong():
    @rule("wrong-rule", op("gelu", "x"))
    def wrong(item, found):
        return node("silu", found["x"])

    run = _one_gelu()
    with pytest.raises(AssertionError, match="wrong-rule"):
        rewrite(run.module, [wrong], watch=Blame(run.weights, run.tokens))


def _one_gelu() -> Run:
    from strategies import Choices, Program

    class First(Choices):
        def __init__(self):
            pass

        def integer(self, low: int, high: int) -> int:
            return high

        def pick(self, options):
            return next(iter(options))

    program = Program(First())
    program.values.append(node("gelu", program.values[0]))
    module = program.module()
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in program.weights.items()}
    return Run(module, weights, np.arange(3, dtype=np.int32))
