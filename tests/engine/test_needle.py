"""`briolette eval needle`: what is hidden and asked, and answers against those of a fresh context."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import briolette
from briolette.engine.cli import app
from briolette.engine.evaluation.needles import documents
from briolette.engine.evaluation.retrieval import Answer, tally, wilson
from briolette.engine.tokenizer import Tokenizer

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
MODEL = MODELS / "gemma2_caps.gguf"  # sliding layers among others, heads that can be rotated
LENGTHS, DEPTHS, TRIALS = (360, 480), (0.0, 50.0, 100.0), 2


def called(*args: object, code: int = 0) -> str:
    """What `briolette eval needle` prints; on stderr where it is a mistake."""
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["eval", "needle", *map(str, args)], prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stderr if code else found.stdout


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("needle") / "text.txt"
    path.write_text("the rain in spain is in the stars, and a siren sings to the sea at noon. " * 3)
    return path


@pytest.fixture(scope="module")
def asked(text):
    return documents(text.read_text(), Tokenizer.from_gguf(MODEL), LENGTHS, [depth / 100 for depth in DEPTHS], TRIALS)


@pytest.fixture(scope="module")
def given(text) -> tuple[object, ...]:
    return (MODEL, "--text", text, "--lengths", "480,360", "--depths", "0,50,100", "--trials", TRIALS, "--threads", 2)


def test_every_sentence_is_where_it_is_said_to_be_and_asked_for(asked):
    tokenizer = Tokenizer.from_gguf(MODEL)

    def spelled(text: str) -> str:
        """With what a tiny vocabulary has."""
        return tokenizer.decode(tokenizer.encode(text, add_bos=False))

    assert [document.length for document in asked] == [360, 360, 480, 480]
    for document in asked:
        whole = tokenizer.decode(document.ids)
        longest = max(len(q.asked) + len(q.answer) for q in document.questions)
        assert document.ids[0] == tokenizer.bos_id
        assert len(document.ids) + longest == document.length
        sentences = []
        for question, depth in zip(document.questions, DEPTHS, strict=True):
            assert question.depth == depth / 100
            sentence = tokenizer.decode(question.asked).replace(spelled("\nRemember: the"), spelled("\nThe"))
            sentence += tokenizer.decode(question.answer) + spelled(".\n")
            assert whole.count(sentence) == 1
            sentences.append(sentence)
        first, middle, last = map(whole.index, sentences)
        assert first == 0
        assert whole.endswith(sentences[-1])
        assert abs((middle - first) / (last - first) - 0.5) < 0.02
    assert len({document.ids for document in asked}) == len(asked)


def test_answers_are_those_of_a_fresh_context(given, asked):
    """All questions follow one reading of the text, in rings that each of them writes over."""
    kv = "full=k:tq6,v:f32;sliding=f32;sink=8;recent=16"
    model, hits, surprises = briolette.load(MODEL, kv=kv, context=480, threads=2), [], []
    for document in asked[2:]:
        for question in document.questions:
            logits = model.logits([*document.ids, *question.asked, *question.answer])[-len(question.answer) - 1 : -1]
            logs = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
            surprises.append(-logs[np.arange(len(question.answer)), question.answer].sum())
            hits.append(bool((logits.argmax(axis=1) == question.answer).all()))
    model.close()
    rows = json.loads(called(*given, "--kv", kv, "--json"))["rows"]
    assert [row["length"] for row in rows] == list(LENGTHS)
    found = rows[1]
    assert (found["questions"], found["hits"]) == (len(hits), sum(hits))
    assert found["nll"] == pytest.approx(np.mean(surprises), rel=1e-4)
    assert found["probability"] == pytest.approx(np.exp(-np.array(surprises)).mean(), rel=1e-3)
    assert found["nll_error"] == pytest.approx(np.std(surprises, ddof=1) / math.sqrt(len(surprises)), rel=1e-3)
    by_depth = [np.mean(surprises[place :: len(DEPTHS)]) for place in range(len(DEPTHS))]
    assert [each["nll"] for each in found["by_depth"]] == pytest.approx(by_depth, rel=1e-4)
    assert [each["depth"] for each in found["by_depth"]] == list(DEPTHS)


def test_caches_are_asked_the_same_and_held_against_the_first(given):
    caches = ("--kv", "f32", "--kv", "all=tq2;sink=0;recent=0")
    exact, _, coded, _ = json.loads(called(*given, *caches, "--json"))["rows"]
    assert (exact["nll_change"], exact["lost"], exact["gained"]) == (0, 0, 0)
    assert coded["nll_change"] == pytest.approx(coded["nll"] - exact["nll"], abs=1e-9)
    assert coded["nll_change"] != 0
    assert coded["bits"] < 4 < exact["bits"]
    lines = called(*given, *caches).splitlines()
    assert sum(line.startswith("  f32 ") for line in lines) == 4  # two lengths, in two tables
    assert f"{coded['nll']:.3f}" in lines[3]


def test_backends_agree(given):
    ours, theirs = (json.loads(called(*given, "--kv", "f32", "--backend", b, "--json")) for b in ("cpu", "reference"))
    assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-4)


def test_hits_that_are_lost_and_gained_are_counted_apart():
    before = [Answer(True, 1.0), Answer(True, 1.0), Answer(False, 3.0), Answer(False, 3.0)]
    now = [Answer(True, 1.5), Answer(False, 2.0), Answer(True, 1.0), Answer(False, 3.0)]
    found = tally(now, before)
    assert (found.hits, found.lost, found.gained, found.share) == (2, 1, 1, 0.5)
    assert found.change[0] == pytest.approx(-0.125)


@pytest.mark.parametrize(("hits", "low", "high"), [(0, 0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1)])
def test_intervals_are_wilsons(hits, low, high):
    """Both ends solve |share - end| = z * sqrt(end * (1 - end) / 10)."""
    assert wilson(hits, 10) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--lengths", "many"), "--lengths takes numbers with commas between them, such as 1024,4096, not 'many'"),
        (("--lengths", 40), "a text of 40 tokens has no room for 3 sentences"),
        (("--lengths", 600), "a text of 600 tokens is longer than the 512 that the model was made for"),
        (("--depths", "0,101"), "--depths are parts of a text in per cent, from 0 to 100"),
        (("--depths", "a"), "--depths takes numbers"),
        (("--kv", "q9"), "there is no KV cache type `q9`"),
        (("--trials", 0), "--trials"),
    ],
)
def test_mistakes_are_told(text, more, words):
    given = {"--lengths": 360, "--depths": "0,50,100", "--trials": 1} | dict([more])
    options = [part for pair in given.items() for part in pair]
    assert words in " ".join(called(MODEL, "--text", text, *options, code=2).split())


def test_an_empty_text_is_told(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    assert "the text to hide sentences in is empty" in called(MODEL, "--text", empty, code=2)
