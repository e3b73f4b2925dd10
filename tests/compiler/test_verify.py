"""Planted bugs: each way for a stage to go wrong is caught, with the stage and the op."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from briolette.compiler.header import TensorInfo
from briolette.compiler.ir import Block, Module, Type, intern_node, rebuilt
from briolette.compiler.ops import node, with_args
from briolette.compiler.pipeline import Form, front, optimise
from briolette.compiler.verify import VerifyError, verify
from briolette.engine.gguf import open_gguf
from briolette.spec import syntax

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models"
X = node("param", name="x", type=Type((4, 6)))
WEIGHT = node("weight", name="w", type=Type((9, 6), "stored"))
GIVEN = node("embed", WEIGHT, node("tokens", rows=4))
HEADS = node("reshape", X, shape=(4, 2, 3))


@pytest.fixture(scope="module")
def model() -> Module:
    header = open_gguf(ORACLE / "llama_plain.gguf").header
    return front(syntax.load(syntax.shipped()["llama"]), header)


def within(item, params=(X,), form="blocks") -> Module:
    """A module that calls a block which returns the item, made past the checks of `node`."""
    call = intern_node("call", (GIVEN,) * len(params), (("block", Block("b", params, item)),), item.type)
    return Module("m", form, (call,), tensors=(TensorInfo("w", (9, 6), "stored"),))


def test_a_right_module_passes(model):
    verify(within(node("gelu", X)), "elaborated")
    verify(model, "unrolled")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (intern_node("gelu", (X,), (), Type((4, 7))), r"gelu says \[4, 7\] f32, its operands give \[4, 6\] f32"),
        (intern_node("gelu", (X,), (), Type((4, 6), "i32")), "gelu says"),
        (intern_node("linear", (X, WEIGHT), (), Type((4, 8))), "linear says"),
        (intern_node("add", (X, HEADS), (), X.type), "broadcast"),
        (intern_node("softcap", (X,), (("cap", -1.0),), X.type), "softcap is above 0"),
        (intern_node("nope", (X,), (), X.type), "nope is no op"),
        (node("param", name="y", type=X.type), "param %y is none of its own"),
        (node("param", name="x", type=Type((4,))), "param %x is none of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_node_in_a_block_is_caught(item, words):
    with pytest.raises(VerifyError, match=words) as caught:
        verify(within(item), "planted")
    assert "after planted" in str(caught.value)


def test_a_parameter_outside_of_blocks_is_caught():
    with pytest.raises(VerifyError, match="after fused: main: param %x"):
        verify(Module("m", "unrolled", (X,)), "fused")


def test_a_parameter_of_another_block_is_caught():
    right, wrong = within(node("gelu", X)), within(node("gelu", X), params=())
    both = replace(right, outputs=(*right.outputs, *wrong.outputs))
    with pytest.raises(VerifyError, match="none of its own"):
        verify(both, "planted")


def test_two_parameters_of_one_name_are_caught():
    with pytest.raises(VerifyError, match="two parameters of one name"):
        verify(within(node("gelu", X), params=(X, X)), "planted")


def test_a_plane_that_is_written_twice_is_caught(model):
    def same_slot(item, args):
        return with_args(item, args, slot=0) if item.op == "cache_write" else with_args(item, args)

    with pytest.raises(VerifyError, match=r"slot 0, plane [kv] is written twice"):
        verify(rebuilt(model, same_slot), "planted")


def test_weights_must_be_those_of_the_file(model):
    with pytest.raises(VerifyError, match="not in the tensor table"):
        verify(replace(model, tensors=()), "planted")
    for change in ({"format": "q4_0"}, {"shape": (3, 3)}):
        with pytest.raises(VerifyError, match="the file has"):
            verify(replace(model, tensors=tuple(replace(t, **change) for t in model.tensors)), "planted")


def test_ops_that_a_stage_rules_out_are_caught(model):
    with pytest.raises(VerifyError, match="linear does not belong in this stage"):
        verify(model, "late", without=frozenset({"linear"}))
    with pytest.raises(VerifyError, match="call does not belong"):
        verify(within(node("gelu", X), form="unrolled"), "planted")


def test_every_form_of_a_model_passes(model):
    for form in (Form(), Form(tokens=1), Form(logits="all", cache="bf16")):
        verify(optimise(model, form), "fused")
