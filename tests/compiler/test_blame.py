"""Blame mode: no rule and no pass changes a value of any model, and a wrong one is named."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from briolette.backends.base import Weights
from briolette.backends.reading import array_of
from briolette.compiler import pipeline
from briolette.compiler.header import Header
from briolette.compiler.ir import Module, Node, Type, nodes_of, rebuilt
from briolette.compiler.ops import node, with_args
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.rewrite import op, rewrite, rule
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture

sys.path.insert(0, str(Path(__file__).parent))
from blame import Blame

MODELS = sorted((Path(__file__).parents[1] / "oracle" / "models").glob("*.gguf"))
FORMS = {"decode": Form(tokens=1), "prefill": Form(), "all": Form(logits="all")}
TOKENS = np.array([3, 1, 4, 1, 5], np.int32)


class Opened:
    """A tiny model with its weights as f32."""

    def __init__(self, path: Path):
        self.file = open_gguf(path)
        self.header: Header = self.file.header
        self.tree = architecture(None, self.header)
        self.module = front(self.tree, self.header)
        self.arrays: dict[str, np.ndarray] = {}

    def weight(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            self.arrays[name] = array_of(Weights(self.file.tensor_bytes), self.module, name)
        return self.arrays[name]

    def blame(self, tokens: np.ndarray = TOKENS) -> Blame:
        return Blame(self.weight, tokens)


@cache
def opened(name: str) -> Opened:
    return Opened(next(path for path in MODELS if path.stem == name))


@pytest.mark.parametrize("name", [path.stem for path in MODELS])
def test_nothing_changes_a_value_of_a_tiny_model(name):
    found = opened(name)
    front(found.tree, found.header, watcher=found.blame())
    for form in FORMS.values():
        optimise(found.module, form, watcher=found.blame(TOKENS[: form.tokens]))


def test_every_rule_and_every_pass_is_watched():
    found, seen = opened("gemma4_moe"), set()

    def watcher(stage, module):
        return lambda name, before, after: seen.add((stage, name))

    front(found.tree, found.header, watcher=watcher)
    for form in FORMS.values():
        trace = Trace()
        optimise(found.module, form, trace, watcher)
        rules = {(stage, name) for stage in ("simplified", "angles") for name in trace.hits[stage]}
        assert rules
        assert rules <= seen
    assert {("unrolled", "unroll"), ("bound", "bind"), ("head", "last-token"), ("fused", "fuse")} <= seen


@rule("wrong-activation", op("gelu", "x"))
def wrong_rule(item, found):
    return node("silu", found["x"])


def test_a_wrong_rule_is_named_with_its_place(monkeypatch):
    found = opened("gemma4_e2b")
    monkeypatch.setattr(pipeline, "SIMPLIFY", [*pipeline.SIMPLIFY, wrong_rule])
    with pytest.raises(AssertionError) as caught:
        optimise(found.module, Form(logits="all"), watcher=found.blame())
    told = str(caught.value)
    assert told.startswith("wrong-activation (stage simplified) changed a value: blk.0.ffn.gelu.1, gelu : [T, ")
    assert "(gemma4.arch:75)" in told
    assert told.endswith("1 of 5 tokens show it")


def test_a_rule_is_blamed_where_there_is_no_pipeline():
    x = node("embed", node("weight", name="e", type=Type((7, 4), "f32")), node("tokens", rows=3))
    module = Module("m", "unrolled", (node("gelu", x),))
    weights = {"e": np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)}
    with pytest.raises(AssertionError, match="wrong-activation"):
        rewrite(module, [wrong_rule], watch=Blame(weights, np.arange(3))("alone", module))


def changed(module: Module, wrong) -> Module:
    """The module with `wrong(node, args)` in the place of nodes, where it gives one."""
    return rebuilt(module, lambda item, args: wrong(item, args) or with_args(item, args))


def no_window(item: Node, args):
    return with_args(item, args, window=None) if item.op == "attend" and item.get("window") else None


def other_eps(item: Node, args):
    return with_args(item, args, eps=0.5) if item.op == "rms_norm" else None


def other_activation(item: Node, args):
    return node("silu", *args) if item.op == "gelu" else None


# A pass by its name in the pipeline, what it does wrong, on which model and form; what blame says.
PASSES = [
    ("bind", other_eps, "qwen3_tied", "decode", "bind (stage bound)", "blk.0.attention.h, rms_norm"),
    ("last_token", other_eps, "gemma3_period", "prefill", "last-token (stage head)", "blk.0.attention.h, rms_norm"),
    ("copies", other_activation, "gemma4_moe", "all", "copies (stage fused)", "blk.0.ffn.gelu.1, gelu"),
    ("fuse", other_eps, "gemma4_dense", "all", "fuse (stage fused)", "blk.0.attention.h, rms_norm"),
    ("fuse", no_window, "gemma3_period", "all", "fuse (stage fused)", "blk.0.attention.a, attend"),
]


@pytest.mark.parametrize(("name", "wrong", "model", "form", "blamed", "place"), PASSES)
def test_a_wrong_pass_is_named_with_its_place(monkeypatch, name, wrong, model, form, blamed, place):
    found, right = opened(model), getattr(pipeline, name)
    monkeypatch.setattr(pipeline, name, lambda module, *rest: right(changed(module, wrong), *rest))
    with pytest.raises(AssertionError) as caught:
        optimise(found.module, FORMS[form], watcher=found.blame(np.arange(24)[: FORMS[form].tokens]))
    assert str(caught.value).startswith(f"{blamed} changed a value: {place} : [")
    assert ".arch:" in str(caught.value)


def test_a_wrong_unrolling_is_named(monkeypatch):
    found, right = opened("qwen3_tied"), pipeline.unroll
    monkeypatch.setattr(pipeline, "unroll", lambda module: changed(right(module), other_eps))
    with pytest.raises(AssertionError, match=r"unroll \(stage unrolled\) changed a value"):
        front(found.tree, found.header, watcher=found.blame())


def test_the_fewest_tokens_that_show_it_are_told(monkeypatch):
    """A sliding window shows from the first position on that it hides one from."""
    found, right = opened("gemma3_period"), pipeline.fuse
    monkeypatch.setattr(pipeline, "fuse", lambda module, *rest: right(changed(module, no_window), *rest))
    window = min(item["window"] for item in nodes_of(found.module) if item.op == "attend" and item.get("window"))
    with pytest.raises(AssertionError, match=f"; {window + 1} of 24 tokens show it"):
        optimise(found.module, FORMS["all"], watcher=found.blame(np.arange(24)))
