"""What a person reads of a difference: each quirk that parts two architectures is one hunk, at its spec line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest

from briolette.compiler.diffing.hunks import Hunk, Line, sections
from briolette.compiler.diffing.script import difference
from briolette.compiler.diffing.tables import kind_rows, param_rows, tensor_rows, value_text
from briolette.compiler.elaborate import elaborate
from briolette.compiler.example import example
from briolette.compiler.ir import Module, layers_of_blocks
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.unfuse import kernels, unfused
from briolette.engine.gguf import open_gguf
from briolette.spec import syntax

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS / "spec"))
import test_quirks  # noqa: E402


@cache
def program(name: str) -> Module:
    return elaborate(syntax.find(name), example(name))


@cache
def hunks(a: str, b: str) -> list[tuple[str, Hunk]]:
    found = sections(difference(program(a), program(b)), program(a), program(b))
    return [(section.name, hunk) for section in found for hunk in section.hunks]


def source(hunk: Hunk, side: str = "after") -> str:
    span = getattr(hunk, side)
    return Path(span.file).read_text(encoding="utf-8").split("\n")[span.line - 1] if span else ""


def story(hunk: Hunk) -> str:
    """The hunk's lines as one text."""
    lines = [f"{line.mark} {line.text}" for line in hunk.lines]
    return "\n".join([*lines, *(f"{c.what}: {c.before}>{c.after}" for line in hunk.lines for c in line.changes)])


@dataclass(frozen=True)
class Quirk:
    """A hunk that must be there: in which block, of which spec line, and what it says."""

    row: str
    block: str
    line: str
    says: tuple[str, ...]


GEMMA3_TO_4 = [
    Quirk("1 layer_output_scale", "layer", "layer_output_scale if has", ("+ mul(%z, layer_output_scale)",)),
    Quirk("2 V-norm", "attention", "|> rms()", ("+ rms_norm(%v)",)),
    Quirk(
        "3 router",
        "experts",
        "r = rms(y) * D ** -0.5",
        ("+ rms_norm(%y) {eps", "+ mul(rms_norm(…), 0.0197642)", "+ %r = mul(mul(…), ffn_gate_inp.scale)"),
    ),
    Quirk("4 rope", "attention", "rms(attn_q_norm) |> rope(", ("dims: 256>512", "freqs: >rope_freqs")),
    Quirk("5 final softcap", "main", "softcap(cap)", ("+ softcap(%logits) {cap = 30}",)),
    Quirk("6 KV sharing", "attention", "cache[src[i]]", ("+ cache[22].k", "k: cache[i].k>cache[22].k")),
    Quirk("7 PLE: token part", "main", "e = embed(per_layer_token_embd", ("+ mul(embed(…), 16)",)),
    Quirk("7 PLE: projected part", "main", "g = linear(x, per_layer_model_proj)", ("+ mul(linear(…), 0.0197642)",)),
    Quirk("7 PLE: sum", "main", "p = (e + g) * 2 ** -0.5", ("+ %p = mul(add(…), 0.707107)",)),
    Quirk("7 PLE: where", "layer", "z = z + ple(z, p[:, i], i)", ("{axis = 1, start = i, stop = i + 1}", "+ ple(%z")),
    Quirk("7 PLE: gate", "ple", "gelu(z |> linear(inp_gate))", ("+ gelu(linear(…))", "+ mul(gelu(…), %p)")),
    Quirk("8 K = V", "attention", "v = c if wv == none", ("- linear(%h, attn_v)",)),
    Quirk("9 attention scale", "attention", "scale=1, window", ("scale: 0.0625>1",)),
]
GEMMA2_TO_3 = [
    Quirk("attention softcap", "attention", "a = attend(", ("softcap: 50>",)),
    Quirk("q norm", "attention", "rms(attn_q_norm)", ("+ rms_norm(reshape(…), attn_q_norm)",)),
    Quirk("k norm", "attention", "rms(attn_k_norm)", ("+ rms_norm(reshape(…), attn_k_norm)",)),
    Quirk("two bases", "attention", "rms(attn_q_norm)", ("theta: 10000>1000000",)),
    Quirk("final softcap", "main", "softcap(cap)", ("- softcap(%logits)",)),
]
LLAMA_TO_QWEN3 = [
    Quirk("q norm", "attention", "rms(attn_q_norm)", ("+ rms_norm(reshape(…), attn_q_norm)",)),
    Quirk("k norm", "attention", "rms(attn_k_norm)", ("+ rms_norm(reshape(…), attn_k_norm)",)),
    Quirk("pairs", "attention", "rms(attn_q_norm)", ("interleaved: true>false", "freqs: rope_freqs>")),
]
PAIRS = [
    *(("gemma3", "gemma4", quirk) for quirk in GEMMA3_TO_4),
    *(("gemma2", "gemma3", quirk) for quirk in GEMMA2_TO_3),
    *(("llama", "qwen3", quirk) for quirk in LLAMA_TO_QWEN3),
]


@pytest.mark.parametrize(("a", "b", "quirk"), PAIRS, ids=lambda v: v if isinstance(v, str) else v.row)
def test_every_quirk_is_one_readable_hunk(a, b, quirk):
    about = [
        hunk
        for block, hunk in hunks(a, b)
        if block == quirk.block
        and quirk.line in source(hunk) + source(hunk, "before")
        and all(words in story(hunk) for words in quirk.says)
    ]
    assert about, f"no hunk about {quirk.row}"
    assert all(len(hunk.lines) <= 7 for hunk in about)


def test_rows_that_do_not_differ_are_not_shown():
    """Norms are used as stored in both (row 10), and attention has no softcap in either (row 5)."""
    text = "\n".join(story(hunk) for _, hunk in hunks("gemma3", "gemma4"))
    assert "softcap: " not in text
    assert not any("attn_norm" in line for line in text.splitlines() if line.startswith(("+ ", "- ", "~ ")))


def test_hunks_say_where_they_hold():
    ours = {hunk.lines[0].text: hunk for block, hunk in hunks("gemma3", "gemma4") if block == "layer"}
    scale = ours["mul(%z, layer_output_scale)"]
    assert scale.layers == tuple(range(42))
    assert set(scale.blocks) == {"layer.local", "layer.global", "layer.local.2", "layer.global.2"}
    assert [n for n in layers_of_blocks(program("gemma4"))["attention.global"]] == [5, 11, 17, 23]


def test_tables():
    a, b = program("gemma3"), program("gemma4")
    params = {row.name: (row.before, row.after) for row in param_rows(a, b)}
    assert params["W"] == ("1024", "512")
    assert params["cap"] == ("0", "30")
    assert "eps" not in params
    kinds = {row.name: (row.before, row.after) for row in kind_rows(a, b)}
    assert kinds["global: freqs"] == ("", "rope_freqs.weight")
    assert kinds["local: window"] == ("1024", "512")
    tensors = {row.name: row for row in tensor_rows(a, b)}
    assert tensors["blk.{i}.layer_output_scale.weight"].before == ""
    assert tensors["blk.{i}.attn_v.weight"].partly
    assert not tensors["blk.{i}.ffn_up.weight"].partly if "blk.{i}.ffn_up.weight" in tensors else True
    assert value_text((True, True, False)) == "true in 0-1; false in 2"


# --- every wrong port is seen where it was made -----------------------------------------------------------


def touched(mutation: test_quirks.Mutation) -> tuple[set[int], set[int]]:
    """The lines that a mutation changes, in the right text and in the wrong one."""
    old, new = test_quirks.TEXT.split("\n"), mutation.apply().split("\n")
    before: set[int] = set()
    after: set[int] = set()
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            before |= set(range(i1 + 1, i2 + 1))
            after |= set(range(j1 + 1, j2 + 1))
    return before, after


def lines_of(hunk: Hunk, side: int) -> set[int]:
    """The lines that a hunk shows of one side, those behind its names too."""
    own = (hunk.before, hunk.after)[side]
    return {span.line for span in (*hunk.behind[side], *([own] if own else []))}


# The others are refused when they meet a file: there is no program to compare.
ELABORATED = [mutation for mutation in test_quirks.MUTATIONS if mutation.by != "file"]


@pytest.mark.parametrize("mutation", ELABORATED, ids=lambda m: f"{m.row}: {m.what}")
def test_a_wrong_port_is_shown_at_its_line(mutation):
    header = open_gguf(TESTS / "oracle" / "models" / f"{mutation.model}.gguf").header
    right = elaborate(syntax.parse(test_quirks.TEXT), header)
    wrong = elaborate(syntax.parse(mutation.apply()), header)
    change = difference(right, wrong)
    assert not change.same
    found = [hunk for section in sections(change, right, wrong) for hunk in section.hunks]
    before, after = touched(mutation)
    tables = kind_rows(right, wrong) + param_rows(right, wrong)
    named = [h for h in found if lines_of(h, 0) & before or lines_of(h, 1) & after]
    assert named or tables, [story(h) for h in found]


# --- stages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma4_e2b", "gemma4_moe", "llama_plain"])
def test_a_fused_program_opened_is_the_program_before(name):
    header = open_gguf(TESTS / "oracle" / "models" / f"{name}.gguf").header
    trace = Trace()
    tree = syntax.find(header.architecture)
    fused = optimise(front(tree, header, trace), Form(), trace)
    opened = unfused(fused, *trace.modules.values())
    assert opened.roots == unfused(trace.modules["cache"]).roots or "copy-view" in trace.hits["fused"]
    assert kernels(opened).keys() == {"attend"}
    assert kernels(fused).keys() >= {"attend", "linear", "rows"}
    found = sections(difference(trace.modules["unrolled"], opened), trace.modules["unrolled"], opened)
    lines = [line for section in found for hunk in section.hunks for line in hunk.lines]
    assert any(change.after == "rotate" for line in lines for change in line.changes)
    assert Line("+", "fused", ()) not in lines
    assert not any("fused" in line.text for line in lines)
