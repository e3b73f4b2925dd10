"""`briolette eval ppl` and `kld` against a plain computation of the same definitions."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import briolette
from briolette.engine.cli import app
from briolette.engine.commands import evaluate
from briolette.engine.divergence import positions
from briolette.engine.evaluation.cache_bits import bits_of_peer
from briolette.engine.evaluation.figures import divergence, estimate
from briolette.engine.evaluation.windows import windows

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
E2B = MODELS / "gemma4_e2b.gguf"
LINE = "the rain in spain is in the stars, and a siren sings to the sea at noon. "
SIZE, COUNT = 48, 3


def called(*args: object, code: int = 0) -> str:
    """What `briolette eval` prints; on stderr where it is a mistake."""
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["eval", *map(str, args)], prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stderr if code else found.stdout


def told(*args: object) -> dict:
    return json.loads(called(*args, "--json"))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "text.txt"
    path.write_text(LINE * 4)
    return path


@pytest.fixture(scope="module")
def given(text) -> tuple[object, ...]:
    return (E2B, "--text", text, "--ctx", SIZE, "--chunks", COUNT, "--threads", 2)


def logits_of(text: Path, kv: str, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """By definition: every scored position's logits in float64 [N, V], and the tokens that come next."""
    model = briolette.load(E2B, kv=kv, context=SIZE, **options)
    ids = model.tokenizer.encode(text.read_text(), special=False)
    found, right = [], []
    for at in range(0, COUNT * SIZE, SIZE):
        window = [model.tokenizer.bos_id, *ids[at + 1 : at + SIZE]]
        found.append(model.logits(window)[SIZE // 2 : -1])
        right += window[SIZE // 2 + 1 :]
    model.close()
    return np.concatenate(found).astype(np.float64), np.array(right)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# --- windows ----------------------------------------------------------------------------------------


def test_windows_are_those_of_llama_cpp(text):
    """The text is tokenised whole; each window begins with BOS in place of its first token."""
    model = briolette.load(E2B, context=SIZE)
    ids = model.tokenizer.encode(text.read_text(), special=False)
    cut = windows(text.read_text(), model.tokenizer, SIZE, COUNT)
    assert (len(cut), cut.size, cut.first, cut.of) == (COUNT, SIZE, SIZE // 2, len(ids) // SIZE)
    assert cut.scored == COUNT * (SIZE - 1 - SIZE // 2)
    for i, window in enumerate(cut):
        assert window[0] == model.tokenizer.bos_id
        assert window[1:] == ids[i * SIZE + 1 : (i + 1) * SIZE]
    assert len(windows(text.read_text(), model.tokenizer, SIZE)) == cut.of
    assert len(windows(text.read_text(), model.tokenizer, SIZE, 10**6)) == cut.of


def test_control_tokens_in_a_text_are_text(text):
    model = briolette.load(E2B, context=SIZE)
    plain = windows("<eos>" + text.read_text(), model.tokenizer, SIZE).ids
    assert model.tokenizer.eos_id not in plain


# --- perplexity -------------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_definition(text, given):
    logits, right = logits_of(text, "f16")
    surprise = -log_softmax(logits)[np.arange(len(right)), right]
    found = told("ppl", *given, "--kv", "f16")
    assert found["scored"] == len(right) == COUNT * (SIZE - 1 - SIZE // 2)
    assert found["ppl"] == pytest.approx(math.exp(surprise.mean()), rel=1e-5)
    error = math.sqrt((np.mean(surprise**2) - np.mean(surprise) ** 2) / (len(right) - 1))
    assert found["ppl_error"] == pytest.approx(found["ppl"] * error, rel=1e-4)
    low, high = found["ppl_interval"]
    assert low < found["ppl"] < high
    assert found["rows"][0]["ppl"] == found["ppl"]


def test_every_cache_has_a_row_and_repeats_itself(given):
    caches = ("--kv", "f32", "--kv", "bf16", "--kv", "f32")  # the last one adds nothing
    found = told("ppl", *given, *caches)
    assert [(row["kv"], row["bits"]) for row in found["rows"]] == [("f32", 32.0), ("bf16", 16.0)]
    assert told("ppl", *given, *caches) == found
    shown = called("ppl", *given, *caches)
    assert [line.split()[:3] for line in shown.splitlines()[1:]] == [
        ["briolette", "f32", "32.00"],
        ["briolette", "bf16", "16.00"],
    ]
    assert f"{found['ppl']:.4f}" in shown


def test_backends_agree(given):
    ours, theirs = (told("ppl", *given, "--kv", "f32", "--backend", b) for b in ("cpu", "reference"))
    assert ours["ppl"] == pytest.approx(theirs["ppl"], rel=1e-5)


# --- divergence -------------------------------------------------------------------------------------


def test_divergence_is_that_of_the_definition(text, given):
    (base, right), (logits, _) = logits_of(text, "f32"), logits_of(text, "bf16")
    p, q = log_softmax(base), log_softmax(logits)
    kl = np.sum(np.exp(p) * (p - q), axis=1)
    gap = (p - q)[np.arange(len(right)), right]
    found = told("kld", *given, "--kv", "bf16")
    assert 1e-8 < found["mean_kld"] < 1
    assert found["mean_kld"] == pytest.approx(kl.mean(), rel=0.02, abs=1e-7)
    assert found["mean_kld_error"] == pytest.approx(math.sqrt(np.var(kl) / (len(kl) - 1)), rel=0.02, abs=1e-7)
    for name, percent in (("median", 50), ("p99", 99), ("p999", 99.9), ("max", 100)):
        assert found[f"{name}_kld"] == pytest.approx(np.percentile(kl, percent), rel=0.02, abs=3e-7)
    same = np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    assert found["same_top"] == pytest.approx(same)
    assert found["same_top_error"] == pytest.approx(math.sqrt(same * (1 - same) / (len(kl) - 1)))
    assert found["ppl_ratio"] == pytest.approx(math.exp(gap.mean()), rel=1e-5)
    assert found["ppl_ratio"] == pytest.approx(found["ppl"] / found["base_ppl"], rel=1e-9)
    assert found["ppl_ratio_error"] == pytest.approx(
        np.exp(gap.mean()) * np.std(gap) / math.sqrt(len(gap) - 1), rel=0.01
    )
    assert found["base"]["kv"] == "f32"


def test_nothing_diverges_from_itself(given):
    found = told("kld", *given, "--kv", "bf16", "--base-kv", "bf16")
    assert (found["mean_kld"], found["max_kld"], found["same_top"], found["ppl_ratio"]) == (0, 0, 1, 1)


def test_the_kernels_of_packed_weights_are_a_setting_too(gemma3_path, text):
    """A fast prefill rounds activations to 8 bits: further from an exact one than packed weights are from mapped."""
    given = (gemma3_path, "--text", text, "--ctx", 32, "--chunks", 1, "--kv", "f32", "--weights", "packed")
    fast = told("kld", *given, "--prefill", "fast")
    assert (fast["base"]["prefill"], fast["base"]["weights"]) == ("exact", "packed")
    assert (fast["prefill"], fast["weights"]) == ("fast", "packed")
    packed = told("kld", *given, "--base-weights", "mapped")
    assert packed["base"]["weights"] == "mapped"
    assert 0 < packed["mean_kld"] < fast["mean_kld"] < 1


def test_large_shifts_and_small_differences_keep_their_digits():
    """In float32, with logits that have an offset in common and differ by little."""
    rng = np.random.default_rng(1)
    base = (rng.normal(size=(5, 9000)) * 3 + 20).astype(np.float32)
    other = base + rng.normal(size=base.shape).astype(np.float32) * np.float32(0.02) + np.float32(3)
    p, q = (log_softmax(each.astype(np.float64)) for each in (base, other))
    kl = np.sum(np.exp(p) * (p - q), axis=1)
    parts = ((base[:, at : at + 4096], other[:, at : at + 4096]) for at in range(0, 9000, 4096))
    found = positions(parts, np.zeros(5, int))[1].kl
    assert kl.max() < 1e-3
    assert found == pytest.approx(kl, abs=1e-7)


# --- figures ----------------------------------------------------------------------------------------


def test_an_interval_is_as_wide_as_windows_differ():
    """Ten windows of which each repeats one number: their positions are no more than ten observations."""
    rng = np.random.default_rng(2)
    means = rng.normal(size=10)
    apart, alike = estimate(rng.normal(size=1000), 10), estimate(np.repeat(means, 100), 10)
    assert alike.error == pytest.approx(np.std(means) / math.sqrt(999))
    assert alike.interval is not None
    assert apart.interval is not None
    width = alike.interval[1] - alike.interval[0]
    assert width == pytest.approx(2 * 1.96 * np.std(means) / math.sqrt(10), rel=0.15)
    assert width > 3 * (apart.interval[1] - apart.interval[0])
    assert estimate(np.ones(3), 1).interval is None


def test_the_likeliest_token_is_compared_at_every_position():
    base, other = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]
    own, beside = positions([(base, other)], [0, 1, 2, 3])
    assert divergence(beside, own, 2).same_top.mean == 0.75


def test_bits_of_a_peers_cache():
    assert (bits_of_peer("q8_0"), bits_of_peer("q8_0/q4_0"), bits_of_peer("new")) == (8.5, 6.5, None)


# --- beside another engine --------------------------------------------------------------------------

STAND_IN = '''#!{python}
"""Answers as llama_cpp_logits.py does, with our own engine."""
import json, sys
import briolette
path, context = sys.argv[3], int(sys.argv[sys.argv.index("--context") + 1])
models, ids = {{}}, {{}}
out = sys.stdout.buffer
def answer(told, more=b""):
    out.write(json.dumps(told).encode() + b"\\n" + more)
    out.flush()
answer({{"version": "9.9", "loaded": True, "vocabulary": {vocabulary}}})
for line in sys.stdin:
    request = json.loads(line)
    role = request["role"]
    if "fill" in request:
        keys, values = request["kv"].split("/")
        if keys not in ("f16", "bf16", "f32"):
            answer({{"failed": request["kv"]}})
            continue
        models[role], ids[role] = briolette.load(path, kv=keys, context=context), request["fill"]
        answer({{}})
    else:
        ids[role] += request["logits"]
        logits = models[role].logits(ids[role])[-len(request["logits"]) :]
        answer({{"rows": len(logits)}}, logits.tobytes())
'''


def stand_in(folder: Path, vocabulary: int = 80) -> Path:
    """A peer's Python that runs something else than it is told."""
    found = folder / "python"
    found.write_text(STAND_IN.format(python=sys.executable, vocabulary=vocabulary))
    found.chmod(0o755)
    return found


def test_a_peer_reads_the_same_windows(given, tmp_path):
    """The stand-in is our own engine: its rows are ours, against its own baseline, which is its f16 cache."""
    peer = ("--peer", "llama.cpp", "--peer-python", stand_in(tmp_path), "--peer-kv", "bf16", "--peer-kv", "f16")
    found = told("kld", *given, "--base-kv", "f16", "--kv", "bf16", *peer)
    ours, theirs, same = found["rows"]
    assert [(row["engine"], row["kv"], row["bits"]) for row in found["rows"]] == [
        ("briolette", "bf16", 16.0),
        ("llama.cpp", "bf16", 16.0),
        ("llama.cpp", "f16", 16.0),
    ]
    assert found["peers"] == {"llama.cpp": "9.9"}
    for name in ("mean_kld", "ppl", "base_ppl", "same_top"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-7)
    assert same["mean_kld"] == 0
    told_ppl = told("ppl", *given, "--kv", "f16", *peer)
    assert [row["ppl"] for row in told_ppl["rows"]] == pytest.approx([ours["base_ppl"], theirs["ppl"], same["ppl"]])
    assert "9.9" in CliRunner().invoke(app, ["eval", "ppl", *map(str, given), *map(str, peer)]).stderr


def test_what_is_wrong_with_a_peer_is_told_in_a_sentence(given, tmp_path):
    def said(python: object, *more: object, name: str = "llama.cpp") -> str:
        return called("ppl", *given, "--peer", name, "--peer-python", python, *more, code=2)

    assert f"there is no Python {tmp_path / 'none'}; `make peers`" in said(tmp_path / "none")
    assert "--peer takes llama.cpp, not 'ollama'" in said(sys.executable, name="ollama")
    assert "no cache of type q9_0; types are such as f16" in said(stand_in(tmp_path), "--peer-kv", "q9_0")
    assert "has 81 logits for a token" in said(stand_in(tmp_path, vocabulary=81))


# --- mistakes, and an end in between ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--ctx", 400), "tokens, and a window takes 400: give a longer text, or a smaller --ctx"),
        (("--ctx", 600), "a window of 600 tokens is longer than the 512 that the model was made for"),
        (("--ctx", 3), "--ctx"),
        (("--chunks", 0), "--chunks"),
        (("--kv", "q9"), "there is no KV cache type `q9`"),
        (("--text", "none.txt"), "cannot read the text file none.txt"),
        (("--prefill", "wild"), "prefill is exact or fast"),
        (("--peer-kv", "q8_0"), "--peer-kv says how a peer keeps its cache: give --peer llama.cpp, too"),
    ],
)
def test_mistakes_are_told(given, text, more, words):
    if more == ("--ctx", 600):
        long = text.with_name("long.txt")
        long.write_text(LINE * 20)
        more = (*more, "--text", long)
    assert words in " ".join(called("ppl", *given, *more, code=2).split())


def test_a_text_from_standard_input(text):
    given = [str(part) for part in ("ppl", E2B, "--text", "-", "--ctx", SIZE, "--json")]
    found = CliRunner().invoke(app, ["eval", *given], input=text.read_text())
    assert json.loads(found.stdout)["chunks"] > COUNT


def test_ctrl_c_ends_it_and_what_it_loaded(given, monkeypatch, closed, interrupted):
    monkeypatch.setattr(evaluate, "TELLING", interrupted)
    monkeypatch.setattr(briolette.Model, "close", lambda model: closed.append(model.options.cache))
    assert called("kld", *given, "--kv", "f16", code=130) == ""
    assert closed == ["f16", "f32", "bar"]
