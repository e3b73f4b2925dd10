"""Traces recorded from transformers and llama.cpp, label by label beside our own values (`make peers`: slow)."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from briolette.backends.base import Weights
from briolette.backends.reading import array_of
from briolette.compiler.interp import Interpreter
from briolette.compiler.labels import labels
from briolette.compiler.pipeline import front
from briolette.engine.gguf import open_gguf
from briolette.engine.model import load
from briolette.engine.recorders.recording import Reference, open_reference
from briolette.engine.tracing.file import Recording, save
from briolette.spec import syntax

pytestmark = pytest.mark.peers
ORACLE = Path(__file__).parents[1] / "oracle"
sys.path.insert(0, str(ORACLE))
from catalog import MODELS  # noqa: E402

PROMPT = "The capital of France is Paris, and the capital of Italy is"
# Relative errors of any value of any model, measured: 1.5e-5 on the tiny models, 1.8e-6 on Gemma 3 270M.
TRANSFORMERS = 5e-5
# llama.cpp reads GELU from a table in f16, which passes through the layers: 5e-3. Without GELU: 1.8e-6.
LLAMA_CPP = {"f32": 1e-5, "f16": 2e-2}
# What quantised weights bring, since activations are rounded to 8 bits: 0.12 on Gemma 3 270M.
QUANTISED = 0.25
RUNS = [name for name, model in MODELS.items() if model.llama_cpp_runs and not model.llama_cpp_overrides]


def path(name: str) -> Path:
    return ORACLE / "models" / f"{name}.gguf"


def oracle(name: str) -> dict[str, np.ndarray]:
    return np.load(ORACLE / "models" / f"{name}.npz")


@cache
def recorded(engine: str, file: Path, tokens: tuple[int, ...]) -> tuple[Reference, dict[str, str]]:
    """A trace, recorded in this process."""
    if engine == "transformers":
        from briolette.engine.recorders import transformers as recorder
    else:
        from briolette.engine.recorders import llama_cpp as recorder
    reference = open_reference(str(file), list(tokens))
    return reference, recorder.record(reference)


def of_oracle(engine: str, name: str) -> tuple[Reference, dict[str, str]]:
    return recorded(engine, path(name), tuple(oracle(name)["tokens"].tolist()))


def ours(file: Path, tokens: list[int], spec: syntax.Architecture | None = None) -> dict[str, np.ndarray]:
    """Every labelled value of the program before any rewrite, by the interpreter."""
    opened = open_gguf(file)
    tree = spec or syntax.load(syntax.shipped()[opened.header.architecture])
    module = front(tree, opened.header)
    interpreter = Interpreter(cache(lambda name: array_of(Weights(opened.tensor_bytes), module, name)))
    interpreter.tokens = np.array(tokens, np.int32)
    interpreter.positions = np.arange(len(tokens), dtype=np.int32)
    interpreter.sizes = {"T": len(tokens), "C": len(tokens)}
    values: dict[object, np.ndarray] = {}
    interpreter.evaluate(module.outputs, {}, values.__setitem__)
    return {label: values[node] for label, node in labels(module).items() if node in values}


def errors(mine: dict[str, np.ndarray], theirs: Reference) -> dict[str, float]:
    """Relative errors, in the order of our program."""
    found = {}
    for label in (label for label in mine if label in theirs.values):
        a, b = mine[label].astype(np.float64), theirs.values[label].astype(np.float64)
        assert a.shape == b.shape, label
        found[label] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return found


def told(found: dict[str, float]) -> None:
    """The greatest error of each row of the table, shown with pytest -rP."""
    rows: defaultdict[str, float] = defaultdict(float)
    for label, error in found.items():
        row = re.sub(r"^blk\.\d+", "blk.{i}", label)
        rows[row] = max(rows[row], error)
    print("\n".join(f"{error:.1e} {row}" for row, error in rows.items()))


@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_transformers(name):
    reference, about = of_oracle("transformers", name)
    found = errors(ours(path(name), reference.tokens), reference)
    told(found)
    assert about["precision"] == "f32"
    assert len(found) == len(reference.values)
    assert max(found.values()) < TRANSFORMERS


@pytest.mark.parametrize("name", MODELS)
def test_the_model_built_from_the_file_is_the_one_that_made_it(name):
    """Their logits from our GGUF are those of the model it was written from, whatever we compute."""
    reference, _ = of_oracle("transformers", name)
    want = oracle(name)["logits"]
    assert np.linalg.norm(reference.values["main"] - want) < TRANSFORMERS * np.linalg.norm(want)


@pytest.mark.parametrize("name", RUNS)
def test_values_are_those_of_llama_cpp(name):
    reference, about = of_oracle("llama_cpp", name)
    found = errors(ours(path(name), reference.tokens), reference)
    told(found)
    gelu = MODELS[name].arch.startswith("gemma")
    assert about["precision"] == ("f16" if gelu else "f32")
    assert len(found) == len(reference.values)
    assert max(found.values()) < LLAMA_CPP[about["precision"]]


@pytest.mark.parametrize("arch", sorted({model.arch for model in MODELS.values()}))
@pytest.mark.parametrize("engine", ["transformers", "llama_cpp"])
def test_every_row_of_a_table_is_used(engine, arch):
    """Every line that names a value of some model gives it, in some model."""
    names = [n for n, m in MODELS.items() if m.arch == arch and (engine == "transformers" or n in RUNS)]
    section = f"{engine.replace('_', '.')} values"
    named: set[int] = set()
    used: set[int] = set()
    for reference in (of_oracle(engine, name)[0] for name in names):
        wanted = reference.wanted(section)
        for row in reference.table.unrolled(section, reference.layers):
            label = wanted.get(row.theirs[0])
            named |= {row.line} if label else set()
            used |= {row.line} if label in reference.values else set()
    assert named == used


def test_the_first_difference_of_a_wrong_spec_is_where_it_is_wrong():
    """V without its norm: the first value that differs is what goes into the cache as V."""
    spec = syntax.shipped()["gemma4"].read_text()
    assert spec.count("v |> rms()") == 1
    wrong = syntax.parse(spec.replace("v |> rms()", "v"), "wrong.arch")
    reference, _ = of_oracle("transformers", "gemma4_e2b")
    found = errors(ours(path("gemma4_e2b"), reference.tokens, wrong), reference)
    first = next(label for label, error in found.items() if error > TRANSFORMERS)
    assert first == "blk.0.cache.v"
    assert found[first] > 0.1


def test_where_llama_cpp_leaves_a_file_that_it_does_not_know():
    """It reads no `rope.local.freq_base` and turns local heads by another base: the first rotation tells."""
    reference, _ = of_oracle("llama_cpp", "gemma4_plain")
    found = errors(ours(path("gemma4_plain"), reference.tokens), reference)
    assert next(label for label, error in found.items() if error > LLAMA_CPP["f16"]) == "blk.0.attention.q"


@pytest.mark.parametrize(
    ("engine", "precision", "bound"), [("transformers", "f32", TRANSFORMERS), ("llama_cpp", "q8", QUANTISED)]
)
def test_gemma3_beside(gemma3_path, engine, precision, bound):
    tokens = load(gemma3_path).tokenize(PROMPT)
    reference, about = recorded(engine, gemma3_path, tuple(tokens))
    found = errors(ours(gemma3_path, tokens), reference)
    told(found)
    assert about["precision"] == precision
    assert max(found.values()) < bound


def test_the_command_writes_a_trace(tmp_path):
    for recorder in ("transformers", "llama_cpp"):
        target = tmp_path / f"{recorder}.npz"
        run = command(recorder, str(path("gemma4_moe")), "--prompt", "ab cd", "-o", str(target))
        assert run.returncode == 0, run.stderr
        assert run.stdout == ""
        with np.load(target) as trace:
            assert len(trace.files) > 100
            assert trace["__tokens__"].dtype == np.int32
            assert '"format": "briolette-trace 1"' in str(trace["__about__"])
            assert trace["blk.0.attention.q"].shape == (len(trace["__tokens__"]), 4, 8)


@pytest.mark.parametrize(
    ("recorder", "arguments", "says"),
    [
        ("transformers", ["nowhere.gguf", "--tokens", "2"], "nowhere.gguf"),
        ("transformers", [str(path("llama_qkv")), "--tokens", "2,500"], "token id 500 is outside the vocabulary of 80"),
        ("llama_cpp", [str(path("gemma4_donors")), "--tokens", "2"], "llama.cpp cannot run this model: llama-kv-cache"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, recorder, arguments, says):
    run = command(recorder, *arguments, "-o", str(tmp_path / "x.npz"))
    assert run.returncode == 2
    assert says in run.stderr.splitlines()[-1]
    assert run.stderr.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("gemma4_e2b", "v |> rms()", "v"),
        ("gemma4_e2b", "scale=1, window", "scale=hd ** -0.5, window"),
        ("gemma4_e2b", "(e + g) * 2 ** -0.5", "(e + g)"),
        ("gemma4_moe", "rms(y) * D ** -0.5 * ", "rms(y) * "),
        ("gemma4_moe", "r = rms(y)", "r = rms(y, ffn_norm)"),
        ("gemma4_dense", "rms(attn_q_norm) |> rope(theta,", "rms(attn_q_norm) |> rope(theta * 2,"),
    ],
)
@pytest.mark.parametrize("engine", ["transformers", "llama_cpp"])
def test_trace_names_the_line_that_a_peer_does_not_have(tmp_path, engine, name, right, wrong):
    """`briolette trace --against` on a spec with a mistake planted in it; without it, nothing diverges."""
    spec = syntax.shipped()["gemma4"].read_text()
    assert spec.count(right) == 1
    line = spec[: spec.index(right)].count("\n") + 1
    planted, target = tmp_path / "wrong.arch", tmp_path / "ref.npz"
    planted.write_text(spec.replace(right, wrong))
    reference, about = of_oracle(engine, name)
    save(target, Recording(np.array(reference.tokens, np.int32), reference.values, about))
    options = [str(path(name)), "--against", str(target)]
    assert briolette("trace", *options).returncode == 0
    found = briolette("trace", *options, "--spec", str(planted))
    assert found.returncode == 1, found.stderr
    assert f"wrong.arch:{line}:" in "".join(found.stdout.splitlines(True)[2:5]), found.stdout


def briolette(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "briolette", *arguments], capture_output=True, text=True)


def command(recorder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"briolette.engine.recorders.{recorder}", *arguments]
    return subprocess.run(line, capture_output=True, text=True)
