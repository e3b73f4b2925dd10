"""`briolette diff` as a person and a program meet it."""

from __future__ import annotations

import html.parser
import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from briolette.compiler.diffing.script import difference
from briolette.engine import comparison
from briolette.engine.cli import app
from briolette.engine.comparison import compare
from briolette.engine.subjects import subject
from briolette.spec import syntax

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models"
MODEL = ORACLE / "gemma4_e2b.gguf"
SAME, DIFFERENT, MISTAKE = 0, 1, 2


def briolette(*args: object, code: int) -> str:
    found = CliRunner(env={"COLUMNS": "120"}).invoke(app, list(map(str, args)), prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stderr if code == MISTAKE else found.stdout


def test_architectures_by_name():
    text = briolette("diff", "gemma3", "gemma4", code=DIFFERENT)
    assert "+ gemma4.arch:53  cache[i] <- k, v |> rms()  # V-norm" in text
    assert "scale: 0.0625 → 1" in text
    assert re.search(r"global: freqs +- +rope_freqs.weight", text)
    assert re.search(r"KV bytes a token, in f16 +[\d,]+ +[\d,]+", text)


def test_what_is_the_same():
    for pair in (("gemma4", "gemma4"), (MODEL, MODEL), (f"{MODEL}@fused", f"{MODEL}@optimised")):
        assert "no difference" in briolette("diff", *pair, code=SAME)
        assert json.loads(briolette("diff", *pair, "--json", code=SAME))["same"] is True


def test_a_changed_line_is_all_that_is_told(tmp_path):
    text = syntax.shipped()["gemma4"].read_text(encoding="utf-8")
    mine = tmp_path / "mine.arch"
    mine.write_text(text.replace("v = c if wv == none", "v = k if wv == none"), encoding="utf-8")
    found = json.loads(briolette("diff", "gemma4", mine, "--json", code=DIFFERENT))
    ((hunk,),) = [section["hunks"] for section in found["sections"]]
    assert [cause["line"] for cause in hunk["causes"]] == [52]
    assert hunk["lines"][0]["changes"] == [{"what": "x", "before": "%c", "after": "%k"}]
    assert found["params"] == found["kinds"] == found["tensors"] == []
    assert "mine.arch:52  v = k if wv == none" in briolette("diff", "gemma4", mine, code=DIFFERENT)


def test_a_spec_is_compiled_for_a_model(tmp_path):
    text = syntax.shipped()["gemma4"].read_text(encoding="utf-8")
    mine = tmp_path / "mine.arch"
    mine.write_text(text.replace("scale=1, window", "scale=hd ** -0.5, window"), encoding="utf-8")
    found = json.loads(briolette("diff", MODEL, mine, "--on", MODEL, "--json", code=DIFFERENT))
    changes = [c for s in found["sections"] for h in s["hunks"] for line in h["lines"] for c in line["changes"]]
    assert {(c["what"], c["before"]) for c in changes} == {("scale", "1")}
    assert found["params"] == []


def test_a_number_that_differs_behind_its_sixth_digit_is_told_whole(tmp_path):
    text = syntax.shipped()["gemma3"].read_text(encoding="utf-8")
    mine = tmp_path / "mine.arch"
    mine.write_text(text.replace("tokens) * D ** 0.5", "tokens) * (D ** 0.5 + 0.000005)"), encoding="utf-8")
    found = json.loads(briolette("diff", "gemma3", mine, "--json", code=DIFFERENT))
    (change,) = [c for s in found["sections"] for h in s["hunks"] for line in h["lines"] for c in line["changes"]]
    assert change["before"] == str(2560**0.5)
    assert change["after"] == str(2560**0.5 + 5e-6)


def test_the_order_of_a_files_tensors_is_no_difference():
    ours = subject(str(MODEL))
    turned = replace(ours.module, tensors=ours.module.tensors[::-1])
    found = compare(ours, replace(ours, module=turned))
    assert found.same
    assert found.tensors == []
    fewer = compare(ours, replace(ours, module=replace(turned, tensors=turned.tensors[1:])))
    assert not fewer.same
    assert len(fewer.tensors) == 1


def test_without_kernels_programs_are_compared_once(monkeypatch):
    seen = []
    monkeypatch.setattr(comparison, "difference", lambda a, b: seen.append((a, b)) or difference(a, b))
    for stage, times in (("elaborated", 1), ("bound", 1), ("fused", 2)):
        seen.clear()
        compare(subject(f"llama@{stage}"), subject(f"qwen3@{stage}"))
        assert len(seen) == times, stage


def test_printed_ir(tmp_path):
    printed = tmp_path / "model.ir"
    printed.write_text(briolette("show", MODEL, "--full", code=0), encoding="utf-8")
    assert "no difference" in briolette("diff", MODEL, printed, code=SAME)
    fused = tmp_path / "fused.ir"
    fused.write_text(briolette("show", MODEL, "--full", "--stage", "fused", code=0), encoding="utf-8")
    assert "no difference" in briolette("diff", fused, f"{MODEL}@fused", code=SAME)
    found = briolette("diff", printed, fused, code=DIFFERENT)
    assert "op: rope → rotate" in found
    assert re.search(r"kernels +before +after", found)


def test_stages_are_told_without_kernels_in_the_way():
    found = json.loads(briolette("diff", f"{MODEL}@elaborated", f"{MODEL}@optimised", "--json", code=DIFFERENT))
    lines = [line for s in found["sections"] for h in s["hunks"] for line in h["lines"]]
    assert found["form"] == "unrolled"
    assert not any("fused" in line["text"] for line in lines)
    assert {kernel["name"] for kernel in found["kernels"]} == {"attend", "linear", "rows"}
    narrowed = briolette("diff", f"{MODEL}@bound", f"{MODEL}@head", "--form", "prefill", code=DIFFERENT)
    assert "{axis = 0, start = T + -1, stop = T}" in narrowed


def test_json_has_what_the_page_says():
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split("## diff")[1].split("\n## ")[0]
    found = json.loads(briolette("diff", "llama", "qwen3", "--json", code=DIFFERENT))
    keys = set(found) | set(found["sections"][0]) | set(found["sections"][0]["hunks"][0])
    keys |= set(found["params"][0]) | set(found["tensors"][0]) | set(found["costs"][0])
    assert [key for key in sorted(keys) if f"`{key}`" not in section] == []


def test_a_page_side_by_side(tmp_path):
    out = tmp_path / "diff.html"
    assert briolette("diff", "gemma2", "gemma3", "--html", out, code=DIFFERENT) == f"{out}\n"
    page = out.read_text(encoding="utf-8")
    html.parser.HTMLParser().feed(page)
    assert "rms_norm(reshape(…), attn_q_norm)" in page
    assert "|&gt; <mark>rms(attn_q_norm) |&gt; </mark>rope(" in page
    assert re.findall(r"(?:src|href)=[\"'](?!#)", page) == []
    assert "softcap: 50" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gemma3", "nothing.gguf"], "nothing.gguf is no file"),
        (["gemma3", "my.arch"], "there is no architecture file my.arch"),
        (["gemma3@nowhere", "gemma4"], "there is no stage `nowhere`; there are elaborated"),
        (["gemma3", "gemma4", "--form", "train"], "there is no form `train`"),
        (["gemma3", "."], ". is a folder"),
        (["gemma3@fused", "gemma4@fused", "--kv", "f8"], "there is no KV cache type `f8`"),
        (["gemma3", "gemma4", "--kv", "f8"], "there is no KV cache type `f8`"),
        (["gemma3", "llama", "--on", MODEL], "and neither gemma3 nor llama is an architecture file of that"),
        ([MODEL, MODEL, "--on", MODEL], "leave --on out, or compare with gemma4"),
        (["gemma3", "gemma4", "--html", "no/such/folder.html"], "cannot write"),
    ],
)
def test_mistakes_are_one_sentence(args, words):
    text = briolette("diff", *args, code=MISTAKE)
    assert words in " ".join(text.split())
    assert "Traceback" not in text


def test_files_that_are_none_of_these(tmp_path):
    broken = tmp_path / "broken.ir"
    broken.write_text("module m blocks\nmain {\n  return %x\n}\n", encoding="utf-8")
    assert "IR text, line 3: %x is not defined above" in briolette("diff", broken, "gemma4", code=MISTAKE)
    assert "leave @fused out" in briolette("diff", f"{broken}@fused", "gemma4", code=MISTAKE)
    junk = tmp_path / "junk.bin"
    junk.write_bytes(bytes(range(64)))
    assert "junk.bin" in briolette("diff", junk, "gemma4", code=MISTAKE)
    other = tmp_path / "other.arch"
    other.write_text(syntax.shipped()["qwen3"].read_text().replace("arch qwen3", "arch other"), encoding="utf-8")
    assert "other comes with no example sizes" in briolette("diff", other, "gemma4", code=MISTAKE)
    bare = tmp_path / "bare.ir"
    bare.write_text(briolette("show", MODEL, code=0), encoding="utf-8")
    assert "print it with show --full" in briolette("diff", bare, f"{MODEL}@unrolled", code=MISTAKE)


def test_every_architecture_comes_with_sizes():
    for name in syntax.shipped():
        found = subject(name)
        assert found.about
        assert found.module.form == "blocks"
        assert subject(f"{name}@optimised").module.form == "unrolled"


def spec_with(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """gemma4 with some words changed."""
    text = syntax.shipped()["gemma4"].read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "mine.arch"
    path.write_text(text, encoding="utf-8")
    return path


def hunks_of(found: dict) -> list[dict]:
    return [hunk for section in found["sections"] for hunk in section["hunks"]]


def test_ir_without_its_tensors(tmp_path):
    bare = tmp_path / "bare.ir"
    bare.write_text(briolette("show", MODEL, code=0), encoding="utf-8")
    found = json.loads(briolette("diff", bare, MODEL, "--json", code=SAME))
    assert found["tensors"] == []
    assert "show --full" in found["notes"][0]
    assert "weight bytes read a token" not in {cost["name"] for cost in found["costs"]}


def test_ir_from_pipes(tmp_path):
    text = briolette("show", MODEL, "--full", code=0)
    found = CliRunner().invoke(app, ["diff", "-", str(MODEL)], input=text)
    assert found.exit_code == SAME, found.output
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    assert "no difference" in briolette("diff", pipe, MODEL, code=SAME)
    writer.join()
    for given in ("", "arch gemma4"):
        found = CliRunner().invoke(app, ["diff", "-", str(MODEL)], input=given)
        assert found.exit_code == MISTAKE
        assert found.stderr.startswith("error: standard input ")


def test_constants_that_are_one_number_in_f32(tmp_path):
    mine = spec_with(tmp_path, ("tokens) * D ** 0.5", "tokens) * (D ** 0.5 + 1e-8)"))
    found = json.loads(briolette("diff", "gemma4", mine, "--json", code=DIFFERENT))
    assert hunks_of(found) == []
    assert "only by rounding" in found["notes"][0]


def test_unchanged_lines_are_shown_where_a_changed_one_rests_on_them(tmp_path):
    mine = spec_with(tmp_path, ("scale=1, window", "scale=hd ** -0.5, window"))
    text = briolette("diff", "gemma4", mine, code=DIFFERENT)
    assert re.search(r'^  > mine.arch:\d+  hd = "attention.key_length_swa"$', text, re.MULTILINE)
    renamed = spec_with(tmp_path, ("ple(", "gated("))
    assert "  > " not in briolette("diff", "gemma4", renamed, code=DIFFERENT)


def test_a_constant_of_every_layer_is_told_once(tmp_path):
    mine = spec_with(tmp_path, ("ple(z, p[:, i], i)", "ple(z, p[:, (i + 1) % L], i)"))
    (hunk,) = hunks_of(json.loads(briolette("diff", "gemma4", mine, "--json", code=DIFFERENT)))
    assert hunk["layers"] == list(range(42))
    assert hunk["lines"][0]["changes"][0]["after"] == "1, 2, 3, … by layer"
    assert "@ local, global: layers 0-41" in briolette("diff", "gemma4", mine, code=DIFFERENT)


def test_what_moved_into_a_new_op_is_not_gone():
    found = json.loads(briolette("diff", "gemma4", "gemma4@fused", "--json", code=DIFFERENT))
    rotated = [line for hunk in hunks_of(found) for line in hunk["lines"] if "rotate(" in line["text"]]
    assert {change["what"] for line in rotated for change in line["changes"]} == {"op"}


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ([("ple(", "gated(")], {"name": "block", "before": "ple", "after": "gated"}),
        ([("kind local", "kind sliding")], {"name": "kind", "before": "local", "after": "sliding"}),
    ],
)
def test_another_name_is_all_that_is_told(tmp_path, changes, row):
    found = json.loads(briolette("diff", "gemma4", spec_with(tmp_path, *changes), "--json", code=DIFFERENT))
    assert found["renamed"] == [row]
    assert found["sections"] == found["kinds"] == []


def test_text_and_json_and_a_page_do_not_share_standard_output():
    assert "exclude each other" in briolette("diff", "gemma3", "gemma4", "--text", "--json", code=MISTAKE)
    assert "both want standard output" in briolette("diff", "gemma3", "gemma4", "--html", "-", "--json", code=MISTAKE)
    assert briolette("diff", "gemma3", "gemma3", "--html", "-", code=SAME).startswith("<!doctype html>")
