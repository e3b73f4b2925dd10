"""Random programs through the whole pipeline: every stage, every form and every backend says the same."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from briolette.backends.base import Options, Weights
from briolette.backends.cpu.engine import CpuEngine
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Node, nodes_of, topological
from briolette.compiler.pipeline import Form, Trace, optimise
from briolette.compiler.plan import Plan, base, is_view, plan
from briolette.compiler.rules.simplify import ANGLES, SIMPLIFY

sys.path.insert(0, str(Path(__file__).parent))
from blame import Blame
from strategies import Program, Run, Seeded, programs, valued

FORMS = [Form(), Form(tokens=1), Form(logits="all"), Form(tokens=1, logits="all")]
ordinary = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def evaluated(run: Run, outputs: tuple[Node, ...], chunk: int = 1 << 30, real: type = np.float32) -> np.ndarray:
    """The first output of steps of `chunk` tokens."""
    interpreter = Interpreter(lambda name: run.weights[name].astype(real), real)
    starts = range(0, len(run.tokens), chunk)
    return np.concatenate([interpreter.step(outputs, run.tokens[at : at + chunk], at)[0] for at in starts])


class Wanted:
    """The program's value in f64, and how near f32 can be held to it: 1e-5, unless f32 itself is off further."""

    def __init__(self, run: Run):
        assume(not near_a_tie(run))
        self.value = evaluated(run, run.module.outputs, real=np.float64)
        own = np.abs(evaluated(run, run.module.outputs) - self.value).max()
        self.error = 1e-5 * max(1.0, np.abs(self.value).max()) + 10 * own

    def is_met(self, ours: np.ndarray) -> bool:
        """Whether these are the values of all tokens, or of the last ones."""
        return bool(np.abs(ours - self.value[-len(ours) :]).max() <= self.error)


def engine_of(run: Run, threads: int = 1) -> CpuEngine:
    weights = Weights(lambda name: run.weights[name].reshape(-1).view(np.uint8))
    return CpuEngine(run.module, weights, Options(context=16, threads=threads, chunk=3))


def check_on_cpu(run: Run, threads: int = 1) -> None:
    """All tokens' logits, the last one's, and token by token."""
    wanted = Wanted(run)
    engine = engine_of(run, threads)
    try:
        assert wanted.is_met(engine.step(run.tokens, 0, "all"))
        assert wanted.is_met(engine.step(run.tokens, 0))
        assert wanted.is_met(np.concatenate([engine.step([t], i) for i, t in enumerate(run.tokens)]))
    finally:
        engine.close()


def near_a_tie(run: Run) -> bool:
    """Whether rounding may decide which experts are chosen: nothing holds across a jump."""
    inner = [n.args[0] for n in topological(run.module.outputs) if n.op == "top"]
    if not inner:
        return False
    values = Interpreter(lambda name: run.weights[name].astype(np.float64), np.float64).step(inner, run.tokens, 0)
    return any(np.diff(np.sort(v, axis=-1), axis=-1).min(initial=1.0) < 1e-4 for v in values)


@ordinary
@given(programs())
def test_every_stage_of_every_form_keeps_the_value(run):
    wanted = Wanted(run)
    for form in FORMS:
        trace = Trace()
        optimise(run.module, form, trace, Blame(run.weights, run.tokens[: form.tokens]))
        for stage, module in trace.modules.items():
            ours = evaluated(run, module.outputs, form.tokens or 1 << 30)
            assert wanted.is_met(ours), f"{stage} of {form}"
    assert wanted.is_met(evaluated(run, optimise(run.module, Form(logits="all")).outputs, 2))
    last, every = (evaluated(run, optimise(run.module, Form(logits=logits)).outputs) for logits in ("last", "all"))
    assert len(last) == 1
    assert np.abs(last - every[-1:]).max() <= wanted.error


@ordinary
@given(programs(), st.sampled_from(["f16", "bf16"]))
def test_fusing_keeps_the_value_whatever_the_cache_keeps(run, dtype):
    for form in (Form(cache=dtype, logits="all"), Form(cache=dtype, tokens=1)):
        trace = Trace()
        optimise(run.module, form, trace)
        before, after = (evaluated(run, trace.modules[s].outputs, form.tokens or 99) for s in ("cache", "fused"))
        assert np.array_equal(before, after), form
        planes = {n.type.dtype for n in nodes_of(trace.modules["fused"]) if n.op == "cache_write"}
        assert planes <= {dtype}


def test_random_programs_reach_every_rule():
    """Larger programs than hypothesis likes to draw, the same on every run, each rewrite watched."""
    hits: Counter[str] = Counter()
    for seed in range(70):
        trace = Trace()
        program = Program(Seeded(seed))
        for _ in range(8):
            program.grow()
        run = valued(program, seed, 3)
        optimise(run.module, Form(), watcher=Blame(run.weights, run.tokens))
        optimise(run.module, Form(cache="f16"), trace)
        for found in trace.hits.values():
            hits += found
    wanted = {r.name for r in (*SIMPLIFY, *ANGLES)}
    wanted |= {"cache-type", "last-token-only", "fuse-linear", "fuse-experts", "fuse-rows"}
    assert {name for name in wanted if hits[name] < 3} == set()


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
    for form, rows in zip(FORMS, (5, 1, 5, 1), strict=True):
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
    check_on_cpu(run, threads=2)
