"""Specs that parse and are wrong, and specs that do not fit a file: exactly what a person is told.

See broken_specs.txt. Each case changes tiny.SPEC, or its file, or both.
"""

from __future__ import annotations

from typing import Any

import golden
import pytest
import tiny

from briolette.compiler.elaborate import elaborate
from briolette.compiler.header import Header
from briolette.spec.errors import SpecError
from briolette.spec.syntax import find, parse


def spec(*changes: tuple[str, str]) -> dict[str, Any]:
    text = tiny.SPEC
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return {"text": text}


def keys(**changes: object) -> dict[str, Any]:
    return {"keys": changes}


def tensors(changes: dict[str, tuple[int, ...] | None]) -> dict[str, Any]:
    return {"tensors": changes}


MODEL = tiny.SPEC[tiny.SPEC.index("model(") :]
ADD = "return x + attention(x, i)"
ATTEND = "attend(q, cache[i], scale=hd ** -0.5, window=window)"

# Wrong whatever the file.
STATIC = {
    "parameter declared twice": spec(('param H     = "head_count"', 'param D     = "head_count"')),
    "let hides a parameter": spec(("dim T, V", "dim T, V\nlet hd = 3")),
    "dimension declared twice": spec(("dim T, V", "dim T, V, T")),
    "block declared twice": spec(("block layer", "block attention")),
    "block named like a parameter": spec(("block attention", "block W")),
    "block named like a function": spec(("block attention", "block rms")),
    "argument twice": spec(("attention(x: [T, D], i)", "attention(x: [T, D], x)")),
    "argument hides a parameter": spec(("attention(x: [T, D], i)", "attention(x: [T, D], L)")),
    "named argument twice": spec(("rope(10000, dims=rot)", "rope(10000, dims=rot, dims=hd)")),
    "assigned parameter": spec(("  h = x |> rms", "  D = x |> rms")),
    "assigned kind entry": spec(("  h = x |> rms", "  window = x |> rms")),
    "assigned cache": spec(("  h = x |> rms", "  cache = x |> rms")),
    "loop variable hides a parameter": spec(("for i in L { x = layer(x, i) }", "for D in L { x = layer(x, D) }")),
    "stored elsewhere": spec(("cache[i] <- k, v", "store[i] <- k, v")),
    "stored three": spec(("cache[i] <- k, v", "cache[i] <- k, v, h")),
    "two kinds of one name": spec(("kind far", "kind near")),
    "otherwise first": spec(("near when local[i]", "near otherwise")),
    "no otherwise": spec(("far otherwise", "far when not local[i]")),
    "entry twice": spec(("{ window = W }", "{ window = W; window = 3 }")),
    "entry missing in one kind": spec(("{ window = W }", "{ window = W; theta = 3 }")),
    "entry hides a parameter": spec(("{ window = none }", "{ window = none; hd = 3 }")),
    "line never reached": spec((ADD, f"{ADD}\n  y = x")),
    "line never reached after both ways return": spec(
        (ADD, f"if L > 1 {{\n    {ADD}\n  }} else {{\n    return x\n  }}\n  return x")
    ),
    "value never used": spec(("  h = x |> rms", "  g = x |> rms(attn_norm)\n  h = x |> rms")),
    "value overwritten": spec(("  v = h", "  k = h |> linear(attn_k) : [T, KV[i], hd]\n  v = h")),
    "argument never used": spec(("layer(x: [T, D], i)", "layer(x: [T, D], p: [T], i)")),
    "parameter never used": spec(("window = W", "window = 3")),
    "let never used": spec(("dim T, V", "dim T, V\nlet big = D > 100")),
    "dimension never used": spec(("dim T, V", "dim T, V, Q")),
    "entry never used": spec(("window = W }", "window = W; a = 1 }"), ("window = none", "window = none; a = 2")),
    "block never used": spec(("x + attention(x, i)", "x + x")),
    "unknown size": spec(("h |> linear(attn_q) : [T, H, hd]", "h |> linear(attn_q) : [T, H, hdd]")),
    "unknown dimension": spec(("-> [T, V] {", "-> [T, Vocabulary] {")),
    "unknown dimension of an argument": spec(("attention(x: [T, D], i)", "attention(x: [T, Q], i)")),
    "ignored twice": spec(('ignore "context_length"', 'ignore "context_length", "context_length"')),
    "ignored and read": spec(('ignore "context_length"', 'ignore "context_length", "window"')),
    "no model": spec((MODEL, "")),
    "two models": spec((MODEL, MODEL + MODEL)),
    "block calls itself": spec((ADD, "return layer(x, i) + attention(x, i)")),
    "blocks call each other": spec(("  h = x |> rms(attn_norm)", "  x = layer(x, i)\n  h = x |> rms(attn_norm)")),
}
# Wrong for this file.
MISFITS = {
    "another architecture": {"architecture": "gemma4"},
    "missing key": keys(eps=None),
    "missing key with a near one": keys(embedding_length=None, embedding_lenght=8),
    "extra key": keys(logit_scale=0.5),
    "extra keys": keys(logit_scale=0.5, rope_scale=2.0),
    "missing tensor": tensors({"blk.1.attn_v.weight": None}),
    "missing tensor with a near one": tensors({"output_norm.weight": None, "out_norm.weight": (8,)}),
    "extra tensor": tensors({"blk.0.attn_k.bias": (4,)}),
    "extra tensors": tensors({"blk.0.ffn_up.weight": (4, 8), "blk.1.ffn_up.weight": (4, 8)}),
    "wrong weight shape": tensors({"blk.0.attn_q.weight": (12, 8)}),
    "wrong norm shape": tensors({"blk.1.attn_norm.weight": (4,)}),
    "transposed weight": tensors({"token_embd.weight": (8, 16)}),
    "list too short": keys(head_count_kv=[2]),
    "list too long": keys(head_count_kv=[2, 1, 1]),
    "list where one number is read": keys(embedding_length=[8, 8]),
    "text where a number is read": keys(embedding_length="8"),
    "flag where a number is read": keys(embedding_length=True),
    "no layers": keys(block_count=0),
    "negative size": keys(head_count=-4, key_length=None),
    "division by zero": keys(head_count=0),
    "K/V heads that do not divide": {
        **keys(head_count_kv=[3, 1]),
        **tensors({"blk.0.attn_k.weight": (6, 8), "blk.0.attn_v.weight": (6, 8)}),
    },
    "odd rotary size": keys(rotary=1),
    "rotary size beyond the head": keys(rotary=4),
    "window not whole": keys(window=2.5),
    "window of zero": keys(window=0),
    "window a list": keys(window=[3, 3]),
    "eps not a number": keys(eps="small"),
    "condition neither true nor false": keys(pattern=[7, 0]),
    "wrong annotation": spec((") : [T, H, hd] |> rope", ") : [T, H, W] |> rope")),
    "wrong result": spec(("attention(x: [T, D], i) -> [T, D]", "attention(x: [T, D], i) -> [T, H]")),
    "wrong argument shape": spec(("layer(x: [T, D], i)", "layer(x: [T, H], i)")),
    "argument reshaped": spec(("layer(x: [T, D], i)", "layer(x: [T, H, 2], i)")),
    "unknown function": spec(("|> rms(attn_norm)", "|> rmsnorm(attn_norm)")),
    "quite unknown function": spec(("|> rms(attn_norm)", "|> fourier(attn_norm)")),
    "unknown name": spec(("rope(10000, dims=rot)", "rope(thet, dims=rott)")),
    "too few arguments": spec(("rope(10000, dims=rot)", "rope()")),
    "too many arguments": spec(("rms(attn_norm)", "rms(attn_norm, 1, 2)")),
    "too many arguments of an op": spec((ADD, "return gelu(x, x) + attention(x, i)")),
    "unknown argument": spec(("rope(10000, dims=rot)", "rope(10000, dms=rot)")),
    "argument given twice": spec(("rope(10000, dims=rot)", "rope(10000, theta=rot)")),
    "named argument of a block": spec((ADD, "return x + attention(x, i=i)")),
    "too few arguments of a block": spec((ADD, "return x + attention(x)")),
    "value missing": spec((ADD, "return x + attention(x + none, i)")),
    "none as a number": spec(("** -0.5", "** -window")),
    "none as a value": spec((ADD, "return x + attention(none, i)")),
    "number as a value": spec(("rms(output_norm)", "rms(3)")),
    "condition on tokens": spec((ADD, "return x if x > 3 else x + attention(x, i)")),
    "condition on values": spec((ADD, "return x if x else x + attention(x, i)")),
    "condition on the number of tokens": spec((ADD, "return x if T > 3 else x + attention(x, i)")),
    "values compared": spec((ADD, "return x if x == 3 else x + attention(x, i)")),
    "a number as a condition": spec((ADD, "return x if W else x + attention(x, i)")),
    "or after a parameter": spec(("window = W", "window = W or 3")),
    "cache read before it is written": spec(("attend(q, cache[i]", "attend(q, cache[i + 1]")),
    "cache of half a layer": spec(("attend(q, cache[i]", "attend(q, cache[0.5]")),
    "a range of caches": spec(("attend(q, cache[i]", "attend(q, cache[0:1]")),
    "attend without a cache": spec(("attend(q, cache[i]", "attend(q, k")),
    "stored for another layer": spec(("cache[i] <-", "cache[0] <-")),
    "stored twice": spec(("cache[i] <- k, v", "cache[i] <- k, v\n  cache[i] <- v, k")),
    "stored rows": spec(("cache[i] <- k, v", "cache[i] <- k, v * h")),
    "per-layer parameter without a layer": spec((": [T, KV[i], hd]\n  cache", ": [T, KV, hd]\n  cache")),
    "per-layer parameter with a key": spec((": [T, KV[i], hd]\n  cache", ": [T, KV[none], hd]\n  cache")),
    "parts of a number": spec((": [T, KV[i], hd]\n  cache", ": [T, H[i], hd]\n  cache")),
    "part out of range": spec(("linear(attn_q)", "linear(attn_q[8])")),
    "range out of range": spec(("linear(attn_q)", "linear(attn_q[:9])")),
    "range of fractions": spec(("linear(attn_q)", "linear(attn_q[:H / 3])")),
    "too many subscripts": spec(("linear(attn_q)", "linear(attn_q[:, :, 1])")),
    "columns of a stored weight": spec(("linear(attn_q)", "linear(attn_q[:, :4])")),
    "size below one": spec((") : [T, H, hd] |> rope", ") : [T, H, hd - 2] |> rope")),
    "size of a fraction": spec((") : [T, H, hd] |> rope", ") : [T, H, hd / 3] |> rope")),
    "tokens times tokens": spec((") : [T, H, hd] |> rope", ") : [T * T, H, hd] |> rope")),
    "bound too large": spec(("cache[i], scale", "cache[last(j < 10 ** 9 : j == 0)], scale")),
    "nothing found": spec(("cache[i], scale", "cache[last(j < L : j > 9)], scale")),
    "let depends on itself": spec(("dim T, V", "dim T, V\nlet a = b + 1\nlet b = a + 1"), ("hd ** -0.5", "a")),
    "kind depends on kinds": spec(("near when local[i]", "near when kind[i] == 'far' and local[i]")),
    "exponent too large": spec(("hd ** -0.5", "hd ** 1000")),
    "root of a negative number": spec(("hd ** -0.5", "(-hd) ** 0.5")),
    "not of a number": spec((ADD, "return x if not L else x + attention(x, i)")),
    "minus a text": spec(("hd ** -0.5", "-'hd'")),
    "text in a sum": spec(("hd ** -0.5", "hd + 'hd'")),
    "flag in a sum": spec(("hd ** -0.5", "hd + true")),
    "kind alone": spec(("hd ** -0.5", "1 if kind == 'near' else 2")),
    "has of an expression": spec((ADD, "return x if has(x + x) else x + attention(x, i)")),
    "has in a pipe": spec((ADD, "return x if (x |> has(attn_q)) else x + attention(x, i)")),
    "layer tensor outside layers": spec(
        ("x = embed(token_embd, tokens)", "x = attention(embed(token_embd, tokens), 0)")
    ),
    "layer block outside layers": spec(("for i in L { x = layer(x, i) }", "x = layer(x, L)")),
    "loop of two lines": spec(("{ x = layer(x, i) }", "{ x = layer(x, i); x = layer(x, i) }")),
    "loop over a function": spec(
        ("{ x = layer(x, i) }", "{ x = rms(x, i) }"), ("for i in L", "x = layer(x, 0)\n  for i in L")
    ),
    "loop that passes nothing on": spec(("{ x = layer(x, i) }", "{ x = layer(tokens, i) }")),
    "loop that passes a part": spec(("{ x = layer(x, i) }", "{ x = layer(x[:, 0:8], i) }")),
    "loop over a fraction": spec(("for i in L", "for i in L / 3")),
    "two loops": spec(
        ("for i in L { x = layer(x, i) }", "for i in L { x = layer(x, i) }\n  for j in L { x = layer(x, j) }")
    ),
    "block that returns nothing": spec((ADD, f"if L > 2 {{\n    {ADD}\n  }}")),
    "block that returns a number": spec((ADD, "return 3 if L > 0 else x + attention(x, i)")),
    "model of two arguments": spec(
        ("model(tokens: [T])", "model(tokens: [T], x: [T])"), ("x = embed(", "x = x * embed(")
    ),
    "rms without eps": spec(('param eps   = "eps"\n', ""), ('"context_length"', '"context_length", "eps"')),
    "a requirement": spec(("dim T, V", "dim T, V\n\nrequire L > 2 and W == 3, 'small models are not described here'")),
    "a requirement of a key": spec(
        ("dim T, V", "dim T, V\n\nrequire (\"window\" or 0) == 0, 'windows are not described'")
    ),
}


def told(text: str = tiny.SPEC, **header: Any) -> str:
    with pytest.raises(SpecError) as caught:
        elaborate(parse(text, "tiny.arch"), tiny.header(**header))
    return str(caught.value)


def test_the_unchanged_spec_fits() -> None:
    elaborate(parse(tiny.SPEC), tiny.header())
    elaborate(parse(tiny.SPEC), tiny.header({"pattern": [1, 0]}))  # flags as some writers store them
    elaborate(parse(tiny.SPEC), tiny.header({"pattern": None, "head_count_kv": [2, 1]}))


@pytest.mark.parametrize("name", STATIC)
def test_a_wrong_spec(name: str) -> None:
    golden.check("broken_specs.txt", name, told(**STATIC[name]), list(STATIC))


@pytest.mark.parametrize("name", MISFITS)
def test_a_spec_and_a_file_that_do_not_fit(name: str) -> None:
    golden.check("misfits.txt", name, told(**MISFITS[name]), list(MISFITS))


# Files of other makers, against the shipped architectures.
FOREIGN: dict[str, Header] = {
    "Mixtral": tiny.oracle_header("llama_plain", expert_count=8, expert_used_count=2),
    "Llama with YaRN": tiny.oracle_header("llama_plain", rope__scaling__type="yarn", rope__scaling__factor=4.0),
    "Qwen3 with YaRN": tiny.oracle_header("qwen3_tied", rope__scaling__type="yarn", rope__scaling__factor=4.0),
    "Gemma 3 with YaRN": tiny.oracle_header("gemma3_array", rope__scaling__type="yarn"),
    "an embedding model": tiny.oracle_header("qwen3_tied", pooling_type=3),
    "attention that is not causal": tiny.oracle_header("llama_plain", attention__causal=False),
    "Granite's attention scale": tiny.oracle_header("llama_plain", attention__scale=0.015625),
    "Gemma 4 without a pattern": tiny.oracle_header("gemma4_e2b", attention__sliding_window_pattern=None),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_no_shipped_architecture_describes(name: str) -> None:
    header = FOREIGN[name]
    with pytest.raises(SpecError) as caught:
        elaborate(find(header.architecture), header)
    directory = str(find(header.architecture).span.file).rsplit("/", 1)[0]
    golden.check("foreign.txt", name, str(caught.value).replace(directory + "/", ""), list(FOREIGN))


def test_the_tables_have_no_stale_entries() -> None:
    for file, cases in (("broken_specs.txt", STATIC), ("misfits.txt", MISFITS), ("foreign.txt", FOREIGN)):
        assert golden.names(file) == set(cases)
