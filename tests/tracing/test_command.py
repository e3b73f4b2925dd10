"""`briolette trace` as a person and a program meet it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import MODELS, model, recorded
from typer.testing import CliRunner

from briolette.engine.cli import app
from briolette.engine.tracing.file import Recording, load, save

E2B, MOE = MODELS["gemma4_e2b"], MODELS["gemma4_moe"]
IDS = "2,5,9,11,40,3,17,22,8"


def trace(*args: object, code: int = 0) -> str:
    """What the command prints; the message where it fails."""
    found = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["trace", *map(str, args)], prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stdout if code != 2 else found.stderr


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a model with its own spec."""
    path = tmp_path_factory.mktemp("traces") / "right.npz"
    trace(E2B, "--tokens", IDS, "-o", path)
    return path


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with one wrong line: the usual scale of attention."""
    path = tmp_path_factory.mktemp("specs") / "wrong.arch"
    path.write_text(model("gemma4_e2b").tree.source.replace("scale=1,", "scale=hd ** -0.5,"))
    return path


def test_the_first_wrong_line_is_shown_with_its_cause(right: Path, wrong: Path) -> None:
    shown = trace(E2B, "--spec", wrong, "--against", right, code=1)
    line = wrong.read_text().split("scale=hd")[0].count("\n") + 1
    assert "first divergence: blk.0.attention.a, layer 0 (local), block attention, attend" in shown
    assert f"wrong.arch:{line}:7: " in shown
    assert "    a = attend(q, cache[src[i]], scale=hd ** -0.5, window=window)" in shown
    assert "^^^^^^" in shown.split("attend(q")[1].split("\n")[1]
    assert "likely cause: the reference has scale 1, ours 0.353553" in shown
    assert "The same line diverges in blk.0.attention.a, blk.1.attention.a" in shown
    assert "also diverging" not in shown
    marked = [row for row in shown.split("\n") if row.startswith("  >")]
    assert len(marked) == 1
    assert "blk.0.attention.a" in marked[0]
    assert "█" in marked[0]
    assert all(f" blk.{layer}.layer" in shown for layer in range(7))
    assert len(trace(E2B, "--spec", wrong, "--against", right, "--all", code=1).split("\n")) > 150


def test_a_program_can_read_the_comparison(right: Path, wrong: Path) -> None:
    found = json.loads(trace(E2B, "--spec", wrong, "--against", right, "--json", code=1))
    first = found["findings"][0]
    assert found["diverges"]
    assert found["tokens"] == [int(i) for i in IDS.split(",")]
    assert (first["label"], first["layer"], first["block"], first["op"]) == (
        "blk.0.attention.a",
        0,
        "attention",
        "attend",
    )
    assert first["line"]["file"].endswith("wrong.arch")
    assert first["step_error"] > 0.1 > first["step_allowed"]
    errors = {row["label"]: row for row in found["values"]}
    assert errors["main"]["error"] > errors["main"]["explained"]
    assert not errors["main"]["diverges"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nothing_diverges_on_either_backend(right: Path, backend: str) -> None:
    shown = trace(E2B, "--against", right, "--backend", backend)
    assert "nothing diverges: 2" in shown
    found = json.loads(trace(E2B, "--against", right, "--backend", backend, "--json"))
    assert (found["diverges"], found["findings"], found["only_here"], found["only_in_reference"]) == (False, [], [], [])


def test_a_model_file_may_be_the_reference(wrong: Path) -> None:
    split = MODELS["gemma4_moe_split"]
    assert "nothing diverges" in trace(MOE, "--against", split, "--tokens", IDS)
    assert "blk.0.attention.a" in trace(E2B, "--against", E2B, "--against-spec", wrong, "--tokens", IDS, code=1)
    said = trace(E2B, "--against", E2B, code=2)
    assert "give a --prompt, or --tokens" in said


def test_several_wrong_lines_are_all_told(right: Path, wrong: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.arch"
    both.write_text(wrong.read_text().replace("rms(post_norm)", "rms(1 + post_norm)"))
    shown = trace(E2B, "--spec", both, "--against", right, code=1)
    assert "first divergence: blk.0.attention.a" in shown
    assert "blk.0.ple and 6 more" in shown.split("also diverging, each by itself:")[1]
    assert "ours has `post_norm` as 1 + w where the reference has w" in shown


def test_a_wrong_backend_is_told_from_a_wrong_program(
    right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program agrees step by step, but what ran computed something else."""
    from briolette.engine.commands import trace as command

    def broken(known: object, ids: list[int], patterns: list[str]) -> Recording:
        found = load(right)
        values = {k: v * 1.01 if k.startswith("blk.3.ffn.d") else v for k, v in found.values.items()}
        return replace(found, values=values)

    monkeypatch.setattr(command, "record", broken)
    shown = trace(E2B, "--against", right, code=1)
    assert "first divergence: blk.3.ffn.d" in shown
    assert "The program is right: it is cpu" in shown


def test_the_values_are_listed(right: Path) -> None:
    rows = trace(E2B, "--tokens", IDS, "--values", "blk.3.*norm", "--values", "main").split("\n")
    assert [row.split()[0] for row in rows[1:-1]] == [
        "blk.3.attn_norm",
        "blk.3.attn_q_norm",
        "blk.3.attn_k_norm",
        "blk.3.post_attention_norm",
        "blk.3.ffn_norm",
        "blk.3.post_ffw_norm",
        "blk.3.post_norm",
        "main",
    ]
    found = json.loads(trace(E2B, "--tokens", IDS, "--json"))
    assert {row["label"] for row in found["values"]} == set(load(right).values)


def changed(path: Path, to: Path, **parts: object) -> Path:
    save(to, replace(load(path), **parts))
    return to


def test_one_sentence_says_what_is_wrong_with_the_input(right: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    values = load(right).values
    for args, says in [
        ((E2B,), "there is nothing to run: give a --prompt"),
        ((E2B, "--tokens", "2,x"), "--tokens takes numbers with commas"),
        ((E2B, "--tokens", "2,999"), "token id 999 is outside the vocabulary"),
        ((E2B, "--tokens", "2", "--prompt", "a"), "--prompt or --tokens, not both"),
        ((E2B, "--tokens", "2", "--values", "blk.9.*"), "no value of this program matches `blk.9.*`"),
        ((E2B, "--tokens", "2", "--values", "blk.3.atn_norm"), "did you mean blk.3.attn_norm"),
        ((E2B, "--tokens", "2", "--tolerance", "1e-3"), "belong to a comparison"),
        ((E2B, "--tokens", "2", "-o", tmp_path / "no" / "where.npz"), "cannot write the trace"),
        ((tmp_path / "none.gguf", "--tokens", "2"), "none.gguf"),
        ((E2B, "--against", tmp_path / "none.npz"), "cannot read the trace"),
        ((E2B, "--against", __file__), "is no trace"),
        ((E2B, "--against", right, "--against-spec", "gemma4"), "--against-spec is for a model file"),
        ((E2B, "--against", right, "--tokens", "2,5"), "the traces are of different tokens: 2 (2, 5) here, 9 (2, 5, 9"),
        ((E2B, "--against", right, "--spec", "no.arch"), "there is no architecture file no.arch"),
        ((E2B, "--against", right, "--tolerance", "1"), "from 0 to below 1, such as 1e-3, not 1"),
        ((E2B, "--against", right, "--values", "blk.9.*"), "right.npz has no value that matches `blk.9.*`"),
        (
            (MODELS["gemma4_dense"], "--against", right),
            "right.npz is a trace of another model than gemma4_dense.gguf, of gemma4_e2b.gguf: ",
        ),
        ((MODELS["llama_plain"], "--against", right), "such as `token_embd`, 9x40 there and 9x48 here"),
        ((E2B, "--tokens", "2,5", "--against", MODELS["llama_plain"]), "llama_plain.gguf is a trace of another model"),
        ((E2B, "--against", changed(right, other, values={"x": values["main"]})), "no value that this program has too"),
    ]:
        said = trace(*args, code=2)
        assert says in " ".join(said.split()), said
        assert said.startswith("error: ")
        assert "Traceback" not in said
        assert said.count("\n") <= 2
    for backend in ("cpu", "reference"):
        strange = changed(right, other, tokens=load(right).tokens + 75)
        assert "token id" in trace(E2B, "--against", strange, "--backend", backend, code=2)
    assert "of the type `q8_0`" in trace(
        E2B, "--against", changed(right, other, about={"kv": "q8_0"}), "--kv", "f32", code=2
    )
    changed(right, other, about={"precision": "f7"})
    assert "its precision is `f7`" in trace(E2B, "--against", other, code=2)
    assert "nothing diverges" in trace(E2B, "--against", other, "--tolerance", "1e-4")


def test_a_large_tolerance_makes_nothing_diverge_that_is_equal(right: Path) -> None:
    for tolerance in ("0.2", "0.99"):
        assert "nothing diverges: 2" in trace(E2B, "--against", right, "--tolerance", tolerance)


def test_chosen_values_alone_are_compared(right: Path, wrong: Path) -> None:
    found = json.loads(
        trace(E2B, "--against", right, "--spec", wrong, "--values", "blk.3.*", "--values", "main", "--json", code=1)
    )
    assert [finding["label"] for finding in found["findings"]] == ["blk.3.attention.a"]
    assert {row["label"].rsplit(".", 1)[0] for row in found["values"]} >= {"blk.3.attention", "main"}
    assert all(row["label"].startswith(("blk.3.", "main")) for row in found["values"])
    assert "nothing diverges" in trace(E2B, "--against", right, "--spec", wrong, "--values", "blk.3.ffn*")


def test_a_prompt_within_the_window_leaves_a_note(right: Path, tmp_path: Path) -> None:
    def noted(*args: object) -> str:
        return CliRunner().invoke(app, ["trace", *map(str, args)]).stderr

    assert "nothing beyond the window" not in noted(E2B, "--against", right)
    trace(E2B, "--tokens", "2,5,9", "-o", tmp_path / "short.npz")
    assert "a window of 7 tokens, and the prompt has 3: nothing beyond" in noted(
        E2B, "--against", tmp_path / "short.npz"
    )


def test_other_shapes_are_told_and_reordered_axes_seen_through(right: Path, tmp_path: Path) -> None:
    found = load(right)
    q = found.values["blk.1.attention.q"]
    heads_first = found.values | {"blk.1.attention.q": np.ascontiguousarray(q.transpose(1, 0, 2))}
    shown = trace(E2B, "--against", changed(right, tmp_path / "a.npz", values=heads_first), "--all")
    assert "nothing diverges" in shown
    rows = json.loads(trace(E2B, "--against", tmp_path / "a.npz", "--json"))["values"]
    assert (
        next(r for r in rows if r["label"] == "blk.1.attention.q")["note"]
        == "the reference has its axes in the order [1, 0, 2]"
    )
    halved = found.values | {"blk.1.attention.q": q[:, :2]}
    shown = trace(E2B, "--against", changed(right, tmp_path / "b.npz", values=halved), code=1)
    assert "first divergence: blk.1.attention.q" in shown
    assert "ours is [9, 4, 24], but [9, 2, 24] in the reference" in shown
    last = {"main": found.values["main"][-1:], "blk.0.layer": found.values["blk.0.layer"]}
    assert "nothing diverges: 2 values" in trace(
        E2B, "--against", changed(right, tmp_path / "c.npz", values=last, about={})
    )


def test_numbers_that_are_none_are_told(right: Path, tmp_path: Path) -> None:
    found = load(right)
    d = found.values["blk.2.ffn.d"].copy()
    d[3, 1] = np.nan
    shown = trace(
        E2B, "--against", changed(right, tmp_path / "nan.npz", values=found.values | {"blk.2.ffn.d": d}), code=1
    )
    assert "first divergence: blk.2.ffn.d" in shown
    assert "1 of the reference's 360 numbers are infinite or NaN" in shown
    json.loads(trace(E2B, "--against", tmp_path / "nan.npz", "--json", code=1), parse_constant=pytest.fail)


def test_a_choice_of_experts_may_come_in_another_order() -> None:
    """What counts is which were chosen, and that what is computed with them follows their order."""
    from runs import against

    right = recorded("gemma4_moe")
    names = {k: v[:, ::-1] for k, v in right.values.items() if k.endswith((".experts.e", ".experts.w")) and v.ndim == 2}
    kept = {k: v for k, v in right.values.items() if k in names or k.endswith((".layer", ".experts", ".layer.y"))}
    assert against("gemma4_moe", replace(right, values=kept | names, about={})).findings == []
    worse = {
        k: np.argsort(v, -1)[:, :2].astype(np.int32) for k, v in right.values.items() if k.endswith("ffn_gate_inp")
    }
    swapped = {k.replace("ffn_gate_inp", "experts.e"): v for k, v in worse.items()}
    found = against("gemma4_moe", replace(right, values=right.values | swapped))
    assert found.findings[0].row.label == "blk.0.experts.e"


def test_a_trained_model_in_blocks_answers_with_the_line(gemma3_path: Path, tmp_path: Path) -> None:
    right, bad = tmp_path / "right.npz", tmp_path / "bad.arch"
    trace(gemma3_path, "--tokens", "2,818,5279,529,7001,563", "-o", right)
    text = (Path(__file__).parents[2] / "spec" / "gemma3.arch").read_text()
    bad.write_text(text.replace("rms(post_ffw_norm)", "rms(1 + post_ffw_norm)"))
    shown = trace(gemma3_path, "--against", right, "--spec", bad, code=1)
    assert "first divergence: blk.0.ffn" in shown
    assert "ours has `post_ffw_norm` as 1 + w" in shown
