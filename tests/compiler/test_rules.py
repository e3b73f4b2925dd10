"""Rewrites one by one: each fires where it should, and dead work disappears."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from briolette.compiler.dims import symbol
from briolette.compiler.ir import Module, Type, topological
from briolette.compiler.ops import node
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.rewrite import rewrite
from briolette.compiler.rules.cache import kept
from briolette.compiler.rules.simplify import ANGLES, SIMPLIFY
from briolette.engine.gguf import open_gguf
from briolette.spec import syntax

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models"
X = node("param", name="x", type=Type((4, 6)))
ONE, TWO, ZERO = (node("const", value=v) for v in (1.0, 2.0, 0.0))


def simplified(item, rules=SIMPLIFY):
    hits: Counter[str] = Counter()
    module = rewrite(Module("m", "unrolled", (item,)), rules, hits)
    return module.outputs[0], hits


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("fold-constants", node("mul", X, node("mul", TWO, TWO)), node("mul", X, node("const", value=4.0))),
        ("constant-right", node("mul", TWO, X), node("mul", X, TWO)),
        ("multiply-by-one", node("mul", X, ONE), X),
        ("add-zero", node("add", X, ZERO), X),
        (
            "reshape-of-reshape",
            node("reshape", node("reshape", X, shape=(24,)), shape=(2, 12)),
            node("reshape", X, shape=(2, 12)),
        ),
        ("reshape-to-same", node("reshape", X, shape=(4, 6)), X),
        ("slice-of-everything", node("slice", X, axis=1, start=0, stop=6), X),
        (
            "slice-of-slice",
            node("slice", node("slice", X, axis=1, start=1, stop=6), axis=1, start=2, stop=3),
            node("slice", X, axis=1, start=3, stop=4),
        ),
    ],
)
def test_rule_fires(rule, before, after):
    found, hits = simplified(before)
    assert found is after
    assert hits[rule] == 1


def test_rope_angles_are_shared_and_caches_get_their_type():
    header = open_gguf(ORACLE / "gemma4_e2b.gguf").header
    module = front(syntax.load(syntax.shipped()["gemma4"]), header)
    hits: Counter[str] = Counter()
    shared = rewrite(module, ANGLES, hits)
    tables = [n for n in topological(shared.roots) if n.op == "rope_table"]
    assert len(tables) == len(module.kinds)
    assert hits["share-rope-angles"] > len(tables)
    typed = kept(module, "f16")
    assert {n.type.dtype for n in topological(typed.roots) if n.op == "cache_write"} == {"f16"}


def test_keys_and_values_that_nobody_reads_disappear():
    """A spec that computes K and V in every layer: those of layers that share are dropped, weights and all."""
    header = open_gguf(ORACLE / "gemma4_e2b.gguf").header
    text = syntax.shipped()["gemma4"].read_text()
    always = text.replace("if src[i] == i {", "if L > 0 {")
    assert always != text
    trace = Trace()
    eager = optimise(front(syntax.parse(always), header, trace), Form(tokens=1))
    usual = optimise(front(syntax.load(syntax.shipped()["gemma4"]), header), Form(tokens=1))
    weights = [{n["name"] for n in topological(m.roots) if n.op == "weight"} for m in (eager, usual)]
    assert weights[0] == weights[1]
    read = {t.name for t in trace.modules["unrolled"].tensors}
    assert any(name.endswith("attn_k.weight") for name in read - weights[0])


def test_only_the_last_token_passes_the_layers_that_own_no_cache():
    header = open_gguf(ORACLE / "gemma4_e2b.gguf").header
    module = front(syntax.load(syntax.shipped()["gemma4"]), header)
    last = optimise(module, Form())
    shared = int(header.metadata["gemma4.attention.shared_kv_layers"])
    owners = int(header.metadata["gemma4.block_count"]) - shared
    rows = {}
    for item in topological(last.roots):
        names = [a["name"] for a in item.args if a.op == "weight" and "ffn_down" in a["name"]]
        for name in names:
            rows[int(name.split(".")[1])] = item.shape[0]
    assert all(rows[layer] == 1 for layer in rows if layer >= owners)
    assert all(str(rows[layer]) == "T" for layer in rows if layer < owners - 1)


def test_of_values_for_all_layers_earlier_tokens_need_the_first_layers_parts():
    header = open_gguf(ORACLE / "gemma4_e2b.gguf").header
    trace = Trace()
    last = optimise(front(syntax.load(syntax.shipped()["gemma4"]), header), Form(), trace)
    assert trace.hits["head"]["parts-of-layers"] == 1
    layers, depth = int(header.metadata["gemma4.block_count"]), 8
    # Of the last layer with a cache of its own, earlier tokens need K and V only, which are made before this is read.
    reached = layers - int(header.metadata["gemma4.attention.shared_kv_layers"]) - 1
    shapes = set()
    for item in topological(last.roots):
        bases = [arg.args[0] if arg.op == "slice" else arg for arg in item.args if item.op == "fused"]
        if any(base.op == "weight" and base["name"] == "per_layer_model_proj.weight" for base in bases):
            shapes.add(item.shape)
    assert shapes == {(symbol("T"), reached * depth), (1, (layers - reached) * depth)}


@pytest.mark.parametrize(
    "item",
    [
        node("add", node("param", name="v", type=Type((6,))), node("const", value=-1.0)),
        node("mul", node("const", value=2.0), node("const", value=0.0)),
        node("reshape", X, shape=(6, 4)),
        node("slice", X, axis=0, start=1, stop=4),
        node("slice", node("slice", X, axis=0, start=1, stop=4), axis=1, start=0, stop=2),
        node("sub", node("const", value=0.0), X),
        node("div", node("const", value=1.0), X),
    ],
    ids=lambda item: item.op,
)
def test_rules_leave_alone_what_they_are_not_about(item):
    found, hits = simplified(item)
    assert found is item or set(hits) == {"fold-constants"}


def test_unit_constants_do_not_shrink_a_broadcast():
    """`v * 1` is `v` only where that keeps the shape; a constant has none, so it always does."""
    scalar = node("sum", X)
    found, hits = simplified(node("mul", node("add", X, scalar), ONE))
    assert found is node("add", X, scalar)
    assert hits["multiply-by-one"] == 1


def test_rules_apply_until_none_does():
    item = X
    for _ in range(5):
        item = node("exp", node("mul", node("add", ZERO, item), ONE))
    found, hits = simplified(item)
    assert [n.op for n in topological([found])] == ["param", *["exp"] * 5]
    assert hits == {"constant-right": 5, "add-zero": 5, "multiply-by-one": 5}
