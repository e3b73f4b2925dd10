"""The edit script: empty between equal programs, and enough to make the second of the first."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from briolette.compiler.diffing.hunks import sections
from briolette.compiler.diffing.script import Make, apply, difference
from briolette.compiler.diffing.tables import kind_rows, param_rows, tensor_rows
from briolette.compiler.elaborate import elaborate
from briolette.compiler.example import example
from briolette.compiler.ir import Module, Rebuilder, topological
from briolette.compiler.ops import node, with_args
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.text import parse_module, print_module
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture
from briolette.spec import syntax

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS / "compiler"))
from strategies import programs  # noqa: E402

SPECS = sorted(syntax.shipped())
ORACLE = {path.stem: path for path in sorted((TESTS / "oracle" / "models").glob("*.gguf"))}
MODULES = {name: elaborate(syntax.find(name), example(name)) for name in SPECS}


def every_table(a: Module, b: Module) -> list[object]:
    return [*sections(difference(a, b), a, b), *param_rows(a, b), *kind_rows(a, b), *tensor_rows(a, b)]


def stages(name: str, form: Form) -> list[Module]:
    header = open_gguf(ORACLE[name]).header
    trace = Trace()
    optimise(front(architecture(None, header), header, trace), form, trace)
    return list(trace.modules.values())


@pytest.mark.parametrize("a", SPECS)
@pytest.mark.parametrize("b", SPECS)
def test_shipped_specs(a, b):
    change = difference(MODULES[a], MODULES[b])
    assert apply(change, MODULES[a]) == MODULES[b]
    assert change.same == (a == b)
    assert (every_table(MODULES[a], MODULES[b]) == []) == (a == b)


@pytest.mark.parametrize("a", ["gemma4_e2b", "gemma4_moe", "llama_qkv"])
def test_models_and_their_stages(a):
    ours = stages(a, Form())
    theirs = [*ours[:1], *stages("gemma4_donors", Form(tokens=1)), *stages(a, Form(tokens=1, cache="f16"))[2:]]
    for before, after in product(ours[::3], theirs[::3]):
        change = difference(before, after)
        assert apply(change, before) == after
        assert change.same == (before == after)
        if before.form == after.form:  # a table is empty where there is nothing to tell of
            assert (param_rows(before, after) == []) == (before.params == after.params)
            assert (kind_rows(before, after) == []) == (before.kinds == after.kinds)
            assert (tensor_rows(before, after) == []) == (before.tensors == after.tensors)
            ops = all(edit.same for edit in change.blocks)
            assert (sections(change, before, after) == ()) == ops


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), programs(), st.integers(0, 3))
def test_random_programs(a, b, stage):
    before, after = a.module, b.module
    if stage:
        forms = (Form(tokens=1), Form(), Form(logits="all"))
        before, after = (optimise(m, forms[stage - 1]) for m in (before, after))
    change = difference(before, after)
    assert apply(change, before) == after
    assert difference(before, before).same
    assert change.same == (before == after)
    assert every_table(before, before) == []


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(steps=12), st.randoms(use_true_random=False))
def test_a_small_change_is_a_small_script(run, random):
    """One op is put in: all others are kept, whatever the program."""
    module = run.module
    spot = random.choice([n for n in topological(module.outputs) if n.op == "linear"])
    rebuild = Rebuilder(lambda n, args: node("tanh", with_args(n, args)) if n is spot else with_args(n, args))
    changed = replace(module, outputs=rebuild(module.outputs))
    change = difference(module, changed)
    assert apply(change, module) == changed
    made = [step for step in change.blocks[-1].steps if isinstance(step, Make)]
    readers = sum(spot in n.args for n in topological(module.outputs))
    assert [step.op for step in made if step.source is None] == ["tanh"]
    assert len(made) <= 1 + readers


# --- what is no difference --------------------------------------------------------------------------------

RENAMED = [("h", "normed"), ("q", "queries"), ("y", "hidden"), ("d", "delta"), ("x", "stream")]


@pytest.mark.parametrize("name", SPECS)
def test_names_and_layout_are_no_difference(name):
    """Values and block parameters by other names, comments gone, lines spread out: the same program."""
    path = syntax.shipped()[name]
    text = re.sub(r" *#.*", "", path.read_text(encoding="utf-8"))
    before, block, after = text.partition("\nblock")
    for old, new in RENAMED:
        block_and_after = re.sub(rf"(?<![\w.\"]){old}(?![\w\"(])", new, block + after)
        block, after = block_and_after[:6], block_and_after[6:]
    spread = (before + block + after).replace(", ", " ,  ").replace("\n\n", "\n\n\n")
    assert spread != text
    other = elaborate(syntax.parse(spread), example(name))
    change = difference(MODULES[name], other)
    assert change.same
    assert every_table(MODULES[name], other) == []
    assert apply(change, MODULES[name]) == other


@pytest.mark.parametrize("name", SPECS)
def test_printed_ir_is_the_same_program(name):
    for module in (MODULES[name], front(syntax.find(name), example(name))):
        again = parse_module(print_module(module))
        assert difference(module, again).same
        assert difference(again, module).same


# --- what is a difference ---------------------------------------------------------------------------------


def test_the_least_things_are_differences():
    module = MODULES["qwen3"]
    renamed = replace(module, name="other")
    fewer = replace(module, tensors=module.tensors[:-1])
    more = replace(module, params=(*module.params, ("new", 1)))
    for other in (renamed, fewer, more):
        change = difference(module, other)
        assert not change.same
        assert apply(change, module) == other


def test_numbers_that_only_compare_equal_are_different():
    x = node("param", name="x", type=MODULES["qwen3"].outputs[0].type)
    a, b = (Module("m", "unrolled", (node("mul", x, node("const", value=value)),)) for value in (0.0, -0.0))
    change = difference(a, b)
    assert not change.same
    assert repr(apply(change, a).outputs[0].args[1]["value"]) == "-0.0"


def test_operands_in_another_order_are_a_difference():
    text = print_module(MODULES["qwen3"])
    swapped = re.sub(r"add\((%\w+), (%\w+)\)", r"add(\2, \1)", text)
    assert swapped != text
    assert not difference(MODULES["qwen3"], parse_module(swapped)).same
