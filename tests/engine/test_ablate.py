"""What each line is worth: figures that are right, lines that are the right ones, and mistakes told in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from briolette.backends.base import Weights
from briolette.compiler.errors import BrioletteError
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import topological
from briolette.compiler.pipeline import front
from briolette.engine import ablation
from briolette.engine.ablation import ablate, variants
from briolette.engine.backends import backend_named
from briolette.engine.cli import app
from briolette.engine.commands.ablate import _short, report
from briolette.engine.divergence import Score, scores
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture
from briolette.engine.together import Together, tensors
from briolette.spec.switches import switches
from briolette.spec.syntax import parse

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models"
MODELS = ["gemma2_caps", "gemma3_period", "gemma4_e2b", "gemma4_moe", "llama_qkv", "qwen3_untied"]
IDS = [5, 17, 3, 42, 8, 8, 30, 21, 2, 11, 64, 33, 7, 50, 12, 29]
TEXT = (
    "The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest structure in "
    "Paris. Its base is square, measuring 125 metres on each side.\n"
)


@cache
def opened(name: str):
    file = open_gguf(ORACLE / f"{name}.gguf")
    return architecture(None, file.header), file.header, Weights(file.tensor_bytes)


@cache
def measured(name: str):
    return ablate(*opened(name), IDS, threads=2)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def plain_scores(logits: list[np.ndarray], targets: np.ndarray) -> list[Score]:
    """The definitions, with nothing clever."""
    own = log_softmax(logits[0])
    found = []
    for other in map(log_softmax, logits):
        kl = float((np.exp(own) * (own - other)).sum(axis=-1).mean())
        perplexity = float(np.exp(-other[np.arange(len(targets)), targets].mean()))
        found.append(Score(kl, float((own.argmax(-1) == other.argmax(-1)).mean()), perplexity))
    return found


def near(ours: Score, wanted: Score) -> bool:
    """Without its norms or residuals a model can be chaotic: the order of sums then shows in the fourth digit."""
    return (
        abs(ours.kl - wanted.kl) <= 1e-5 + 1e-3 * wanted.kl
        and ours.agreement == wanted.agreement
        and abs(ours.perplexity / wanted.perplexity - 1) < 2e-3
    )


# --- the figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(40,), (7, 1, 32), (1,) * 40])
def test_scores_do_not_depend_on_the_parts(widths):
    rng = np.random.default_rng(1)
    logits = [(rng.standard_normal((6, 40)) * scale).astype(np.float32) for scale in (3, 1, 30)]
    targets = rng.integers(0, 40, 6)
    ends = np.cumsum(widths)[:-1]
    parts = zip(*(np.split(one, ends, axis=1) for one in logits), strict=True)
    found = scores(parts, targets)
    assert all(near(ours, wanted) for ours, wanted in zip(found, plain_scores(logits, targets), strict=True))
    assert found[0].kl == 0.0
    assert found[0].agreement == 1.0


def test_scores_of_what_is_no_number_are_infinite():
    logits = np.zeros((2, 4), np.float32)
    broken = np.full((2, 4), np.nan, np.float32)
    far = np.array([[0, 0, 0, 1e30]] * 2, np.float32)
    (_, lost, apart) = scores([[logits, broken, far]], [0, 1])
    assert lost.kl == lost.perplexity == float("inf")
    assert apart.kl > 1e29
    assert apart.perplexity == float("inf")


@pytest.mark.parametrize("name", MODELS)
def test_programs_run_together_as_they_do_alone(name):
    """Logits of every variant: each evaluated by itself, all tokens at once, against what `ablate` tells of them."""
    tree, header, weights = opened(name)
    own = front(tree, header)
    found = measured(name)
    programs, _ = variants(tree, header, own, len(IDS) - 1)
    arrays = ablation._Numpy(weights, header, np.array(IDS[:-1]), 1, 1, lambda done, wanted: None)
    targets = np.array(IDS[-found.scored :])
    with np.errstate(all="ignore"):
        logits = [
            Interpreter(arrays.interpreter().stored).step(module.outputs, IDS[:-1], 0)[0][-found.scored :]
            for module in (own, *programs.values())
        ]
    wanted = plain_scores(logits, targets)
    ours = {worth.switch: worth.score for worth in found.lines}
    assert near(found.own, wanted[0])
    assert len(ours) == len(programs) > 15
    for switch, right in zip(programs, wanted[1:], strict=True):
        assert near(ours[switch], right), switch.what


@pytest.mark.parametrize("name", ["gemma3_period", "gemma4_e2b", "gemma4_moe"])
def test_each_tensor_is_decoded_once(name):
    tree, header, weights = opened(name)
    own = front(tree, header)
    read: list[str] = []

    def stored(name: str) -> np.ndarray:
        read.append(name)
        return weights.stored(name)

    assert len(ablate(tree, header, Weights(stored), IDS[:4], threads=2).lines) > 20
    looked_up = ("token_embd.weight", "per_layer_token_embd.weight")  # some rows at a time
    sliced = ("ffn_gate_up_exps",)  # each part by itself
    matrices = [t.name for t in own.tensors if len(t.shape) > 1 and t.name not in looked_up]
    times = {name: 2 if any(part in name for part in sliced) else 1 for name in matrices}
    assert {name: read.count(name) for name in matrices} == times


def test_values_given_are_not_computed():
    tree, header, weights = opened("llama_plain")
    own = front(tree, header)
    numpy = ablation._Numpy(weights, header, np.array(IDS), 1, 1, lambda done, wanted: None)
    (root,) = own.outputs
    first = next(n for n in topological([root]) if n.op == "add")
    with ThreadPoolExecutor(1) as pool:
        (value,) = Together(numpy.interpreter(), pool, 1).evaluate([first], {})
        (ours,) = Together(numpy.interpreter(), pool, 1).evaluate([root], {first: value})
    (wanted,) = numpy.interpreter().evaluate([root], {})
    assert np.allclose(ours, wanted, rtol=1e-4, atol=1e-5)
    assert tensors([root], {first: value}) < tensors([root], {})


# --- the lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_switch_is_scored_or_left_out_for_a_reason(name):
    found = measured(name)
    assert len(found.lines) > 15
    assert all(worth.score.kl >= 0 and 0 <= worth.score.agreement <= 1 for worth in found.lines)
    assert [w.score.kl for w in found.lines] == sorted((w.score.kl for w in found.lines), reverse=True)
    assert found.own.kl == 0.0
    assert found.own.agreement == 1.0
    assert all(left.reason for left in found.left_out)


def test_nothing_switched_off_costs_exactly_nothing():
    tree, header, weights = opened("gemma3_period")
    own = front(tree, header)
    found = ablation._Numpy(weights, header, np.array(IDS[:-1]), 8, 2, lambda done, wanted: None)
    same, again = found.scores([own, own], np.array(IDS[-8:]))
    assert same == again
    assert (again.kl, again.agreement) == (0.0, 1.0)


def whats(found, line: str) -> set[str]:
    return {worth.switch.what for worth in found.lines if line in worth.switch.source}


def test_the_quirks_of_a_model_are_there():
    """One of Gemma 4's reference points a line, on a model that has it."""
    found = measured("gemma4_e2b")
    assert "no factor layer_output_scale" in whats(found, "z * layer_output_scale")
    assert "no norm" in whats(found, "cache[i] <- k, v |> rms()")
    assert {"scale=hd ** -0.5, as is usual", "no window=window"} <= whats(found, "attend(")
    assert "no freqs=freqs" in whats(found, "rms(attn_q_norm)")
    assert "no softcap" in whats(found, "softcap(cap)")
    assert "no factor P ** 0.5" in whats(found, "per_layer_token_embd")
    assert "no z = ... when P > 0" in whats(found, "z = z + ple")
    assert 'as if the file had no "attention.shared_kv_layers": 0' in whats(found, "param S")
    assert "as if wv == none" in whats(found, "v = c if wv == none")
    router = whats(measured("gemma4_moe"), "ffn_gate_inp.scale")
    assert router == {"no norm", "no factor D ** -0.5", "no factor ffn_gate_inp.scale"}


def reasons(found) -> dict[str, str]:
    return {f"{left.switch.span.line}: {left.switch.what}": left.reason for left in found.left_out}


def test_what_changes_nothing_is_left_out():
    tree, header, weights = opened("gemma3_period")
    found = reasons(ablate(tree, header, weights, IDS[:3]))
    assert found["43: no window=window"] == "3 tokens are too few to tell the difference"
    assert found["43: scale=hd ** -0.5, as is usual"] == "this file has the same program without it"
    assert found["23: as if W == 0"].startswith("the same as line 13, as if the file had no ")
    assert found["23: as if isbool(pattern[i])"].startswith("does not fit the file: ")
    assert "no window=window" in {worth.switch.what for worth in measured("gemma3_period").lines}


def test_an_architecture_of_ones_own(tmp_path):
    tree, header, weights = opened("qwen3_tied")
    own = parse(tree.source.replace("silu(", "gelu("), "my.arch")
    usual, changed = (ablate(one, header, weights, IDS) for one in (tree, own))
    assert usual.own.perplexity != changed.own.perplexity
    assert {w.switch.span.file for w in changed.lines} == {"my.arch"}


def test_compiled_engines_say_the_same(monkeypatch):
    monkeypatch.setattr(ablation, "switches", lambda tree: switches(tree)[::9])  # each takes a second to compile
    tree, header, weights = opened("qwen3_tied")
    numpy, compiled = (ablate(tree, header, weights, IDS[:8], backend, threads=2) for backend in ("reference", "cpu"))
    ours = {worth.switch: worth.score for worth in compiled.lines}
    assert near(compiled.own, numpy.own)
    assert all(near(ours[worth.switch], worth.score) for worth in numpy.lines)
    assert len(ours) == len(numpy.lines)


def test_a_program_that_a_backend_cannot_compile_is_told(monkeypatch):
    def refuse(module, weights, options):
        raise NotImplementedError("a slice of axis 0")

    monkeypatch.setattr(backend_named("cpu"), "compile", refuse)
    with pytest.raises(BrioletteError, match="cpu has no kernels for one of the programs: a slice of axis 0"):
        ablate(*opened("qwen3_tied"), IDS[:4], "cpu")


def test_progress_is_told_to_the_end():
    told: list[tuple[int, int]] = []
    ablate(*opened("llama_plain"), IDS, threads=2, progress=lambda done, wanted: told.append((done, wanted)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {wanted for _, wanted in told} == {len(told)}


# --- the command -------------------------------------------------------------------------------------------


def here(*args: object, code: int = 0) -> str:
    found = CliRunner(env={"COLUMNS": "100"}).invoke(app, list(map(str, ("ablate", *args))), prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stdout if code == 0 else found.stderr


TINY = ORACLE / "qwen3_untied.gguf"


def test_the_table_and_the_document():
    ids = ",".join(map(str, IDS))
    rows = here(TINY, "--ids", ids).splitlines()
    assert rows[0].split() == ["KL", "top-1", "perplexity", "line", "without", "it"]
    assert rows[1].split()[:3] == ["0.0000", "100", "%"]
    assert any("rms(attn_q_norm)" in row for row in rows)
    answer = json.loads(here(TINY, "--ids", ids, "--json"))
    assert (answer["tokens"], answer["scored"], len(answer["lines"])) == (12, 6, len(rows) - 2)
    first = answer["lines"][0]
    assert set(first) == {"file", "line", "column", "what", "source", "kl", "agreement", "perplexity"}
    assert f"{first['kl']:.4f}" == rows[2].split()[0]
    assert set(answer["left_out"][0]) == {"line", "what", "reason"}


def test_a_narrow_table_keeps_every_line_readable():
    found = measured("gemma4_e2b")
    wide, narrow = report(found), report(found, 80).splitlines()
    assert report(found, 500) == wide
    assert max(map(len, narrow)) <= 80
    for worth, row, below in zip(found.lines, narrow[2::2], narrow[3::2], strict=True):
        assert row.split()[4] == str(worth.switch.span.line)
        assert worth.switch.source.startswith(below.removesuffix("…").strip())
        assert len(below) >= min(80, len(worth.switch.source))


def test_perplexities_are_written_in_one_way():
    assert [_short(value) for value in (3.14159, 999999.4, 2e6, float("inf"))] == [
        "3.14",
        "999999.40",
        *["> 1000000"] * 2,
    ]


def test_help_shows_an_example():
    assert "briolette ablate" in here("--help").split("Example")[-1]


def test_mistakes_are_one_sentence(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    for args, told in {
        (): "give either a text with --text FILE, or token ids with --ids 2,5,9",
        ("--ids", "2,5", "--text", "x"): "give either a text with --text FILE, or token ids with --ids 2,5,9",
        ("--ids", "2,five"): "--ids takes numbers with commas between them, such as 2,5,9, not '2,five'",
        ("--ids", "3"): "a next token can be scored in a text of two tokens or more, and this one has 1",
        ("--ids", "3,4000"): "token ids go from 0 to",
        ("--ids", "3,4,5", "--tokens", 9): "the text has 3 tokens, and --tokens asks for 9",
        ("--ids", "3,4", "--backend", "abacus"): "there is no backend `abacus`",
        ("--ids", "3,4", "--spec", "none.arch"): "there is no architecture file none.arch",
    }.items():
        assert here(TINY, *args, code=2).startswith(f"error: {told}"), args
    assert here(TINY, "--text", tmp_path / "none.txt", code=2).startswith("error: cannot read the text file")
    assert "is not UTF-8 text" in here(TINY, "--text", latin, code=2)


def test_gemma_3(gemma3_path, tmp_path):
    """A real model: nothing is worth more than the residual stream; a window is worth nothing in a short text."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    command = [sys.executable, "-m", "briolette", "ablate", gemma3_path, "--text", text, "--tokens", "6", "--json"]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    cost = {(row["source"].split(" = ")[0], row["what"]): row["kl"] or float("inf") for row in answer["lines"]}
    assert cost["y", "no residual x"] > 10
    assert cost["d", "no activation"] > 1
    assert cost["x", "no factor D ** 0.5"] > 1
    assert cost["q", "no rotation"] > 0.01
    left = {row["what"]: row["reason"] for row in answer["left_out"]}
    assert left["no window=window"] == "6 tokens are too few to tell the difference"
