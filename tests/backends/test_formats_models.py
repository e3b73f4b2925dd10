"""Whole models whose weights are stored in each block format: native code against the evaluator in f64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_llama

import briolette
from briolette.backends.base import Weights
from briolette.backends.formats import FORMATS
from briolette.backends.reading import array_of
from briolette.compiler.interp import Interpreter

PROMPT = [5, 17, 3, 40, 40, 8, 0, 47, 21, 33, 1]


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def compare(path: Path) -> None:
    """A prompt of many tokens, and tokens one by one after it: both ways that weights are read."""
    native = briolette.load(path, threads=2, context=32, chunk=8, kv="f32", weights="mapped")
    plain = briolette.load(path, backend="reference", context=32, kv="f32")
    weights = Weights(native.file.tensor_bytes)
    # f32 sums of random blocks cancel, in numpy's order more than in ours: so the judge computes in f64.
    judge = Interpreter(lambda name: array_of(weights, native.module, name).astype(np.float64), np.float64)
    (exact,) = judge.step(native.module.outputs, PROMPT, 0)
    found = np.array([native.prefill(PROMPT[:count]) for count in range(7, len(PROMPT) + 1)])
    assert error(found, exact[6:]) <= 3e-6
    assert error(plain.logits(PROMPT), exact) <= 1e-5
    for prefill, bound in (("exact", 5e-4), ("fast", 0.05)):
        packed = briolette.load(path, threads=2, context=32, chunk=8, kv="f32", weights="packed", prefill=prefill)
        assert error(packed.logits(PROMPT), exact) <= bound
        packed.close()
    native.close()
    plain.close()


@pytest.mark.parametrize("format", FORMATS)
def test_all_weights_in_one_format(format, tmp_path):
    """Tied and untied heads alternate: the table of a tied one is looked up in and multiplied with."""
    tied = list(FORMATS).index(format) % 2 == 0
    compare(tiny_llama.write(tmp_path / "model.gguf", format, layers=1, tied=tied))


@pytest.mark.parametrize("format", ["f32", "q4_k", "q8_0"])
def test_the_other_kind_of_head(format, tmp_path):
    tied = list(FORMATS).index(format) % 2 == 1
    compare(tiny_llama.write(tmp_path / "model.gguf", format, layers=2, tied=tied))


def test_norms_that_are_not_stored_as_f32(tmp_path):
    compare(tiny_llama.write(tmp_path / "model.gguf", "bf16", layers=1, norms="f16"))
