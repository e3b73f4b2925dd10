"""Costs: hand-counted for single ops, the same in every form of a program."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from briolette.backends.formats import element_bytes
from briolette.compiler.cost import Cost, Costs, kv_token_bytes
from briolette.compiler.elaborate import elaborate
from briolette.compiler.example import example
from briolette.compiler.header import TensorInfo
from briolette.compiler.ir import Module, Node, Type
from briolette.compiler.ops import node
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture
from briolette.spec import syntax

MODELS = {p.stem: p for p in sorted((Path(__file__).resolve().parents[1] / "oracle" / "models").glob("*.gguf"))}
X = node("param", name="x", type=Type((3, 32)))


def weight(name: str, *shape: int, format: str = "q8_0") -> Node:
    return node("weight", name=name, type=Type(shape, format))


def cost(item: Node, **sizes: int) -> Cost:
    module = Module("m", "unrolled", (item,))
    return Costs(module, element_bytes, **sizes).of(item)


def test_a_product():
    found = cost(node("linear", X, weight("w", 64, 32)))
    assert found.flops == 2 * 3 * 32 * 64
    assert found.weights == 64 * 32 / 32 * 34  # a q8_0 block has 32 elements in 34 bytes
    assert found.values == 4 * (3 * 32 + 3 * 64)
    assert found.bytes == found.weights + found.values


def test_a_table_is_read_where_it_is_looked_up():
    ids = node("tokens", rows=3)
    found = cost(node("embed", weight("w", 1000, 32, format="f16"), ids), tokens=3)
    assert found.weights == 3 * 32 * 2


@pytest.mark.parametrize(("rows", "used", "touched"), [(1, 2, 2), (3, 2, 6), (9, 2, 8)])
def test_experts_are_read_as_far_as_they_are_chosen(rows, used, touched):
    x = node("param", name="x", type=Type((rows, 32)))
    ids = node("param", name="ids", type=Type((rows, used), "i32"))
    found = cost(node("expert_linear", x, weight("w", 8, 16, 32, format="f32"), ids))
    assert found.weights == touched * 16 * 32 * 4
    assert found.flops == 2 * rows * used * 16 * 32


@pytest.mark.parametrize(("window", "seen"), [(None, 100), (16, 16), (512, 100)])
def test_attention_reads_what_it_sees(window, seen):
    pos = node("position", rows=1)
    q = node("param", name="q", type=Type((1, 4, 8)))
    k, v = (node("cache_write", node("param", name=n, type=Type((1, 2, 8))), pos, slot=0, plane=n) for n in "kv")
    found = cost(node("attend", q, k, v, pos, scale=1.0, window=window), tokens=1, context=100)
    assert found.cache == 2 * seen * 2 * 8 * 4
    assert found.flops == 2 * 2 * 4 * 8 * seen


def test_views_and_weights_cost_nothing():
    for item in (node("reshape", X, shape=(96,)), weight("w", 4, 4), node("dequant", weight("w", 4))):
        assert cost(item) == Cost()


@pytest.mark.parametrize("name", MODELS)
def test_every_form_of_a_program_costs_the_same(name):
    """Block form, unrolled form and the program before kernels; fused, fewer values are moved."""
    header = open_gguf(MODELS[name]).header
    trace = Trace()
    module = front(architecture(None, header), header, trace)
    plain, inline = (Costs(m, element_bytes).total() for m in (trace.modules["elaborated"], module))
    assert plain == inline
    fused = Costs(optimise(module, Form(tokens=1), trace), element_bytes).total()
    before = Costs(trace.modules["cache"], element_bytes).total()
    assert fused.values < before.values
    assert fused.cache == before.cache
    assert 0.9 < before.flops / plain.flops <= 1.1
    assert fused.flops >= before.flops  # what a kernel computes again is cheaper than what it would wait for


@pytest.mark.parametrize("name", MODELS)
def test_cache_bytes_a_token(name):
    header = open_gguf(MODELS[name]).header
    trace = Trace()
    unrolled = front(architecture(None, header), header, trace)
    found = kv_token_bytes(trace.modules["elaborated"])
    assert found == kv_token_bytes(unrolled)
    halves = kv_token_bytes(optimise(unrolled, Form(cache="f16")))
    assert {slot: 2 * size for slot, size in halves.items()} == dict(found) == dict(kv_token_bytes(unrolled, "f32"))


def test_known_models():
    """Figures that are published, or counted by hand from published sizes."""
    module = elaborate(syntax.find("qwen3"), example("qwen3"))
    assert sum(kv_token_bytes(module, "f16").values()) == 28 * 2 * 8 * 128 * 2
    total = Costs(module, element_bytes, tokens=1, context=1).total()
    matrices = sum(math.prod(t.shape) for t in module.tensors if len(t.shape) == 2)  # the embedding is the head, too
    assert total.flops == pytest.approx(2 * matrices, rel=0.01)
    assert total.weights == pytest.approx(2 * matrices, rel=0.01)


def test_a_format_that_is_not_said_is_looked_up():
    item = node("linear", X, node("weight", name="blk.{i}.w", type=Type((64, 32), "stored")))
    module = Module("m", "blocks", (item,), tensors=(TensorInfo("blk.2.w", (64, 32), "f16"),))
    assert Costs(module, element_bytes).of(item, layer=2).weights == 64 * 32 * 2
