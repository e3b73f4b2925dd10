"""Greedy text beside transformers and llama.cpp on the same file (`make peers`: slow)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import briolette

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent
COUNT = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three laws of motion are",
    "In 1969, humans first",
    "Liebe Freunde, heute möchte ich",
    "List of fruits:\n1. Apple\n2.",
    "The quick brown fox",
    "To make a good cup of coffee, you need",
]


def peer(script: str, path: Path, prompts: list[list[int]]) -> list[dict[str, list[float]]]:
    request = json.dumps({"model": str(path), "prompts": prompts, "count": COUNT})
    command = [sys.executable, str(HERE / script)]
    output = subprocess.run(command, input=request, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def first_difference(model: briolette.Model, prompt: list[int], theirs: list[float]) -> tuple[int, float] | None:
    """Where our greedy token is another than theirs, and by how much we prefer it; None if nowhere."""
    logits = model.prefill(prompt)
    ids = list(prompt)
    for place, token in enumerate(theirs):
        best = int(np.argmax(logits))
        if best != token:
            return place, float(logits[best] - logits[int(token)])
        ids.append(best)
        logits = model.prefill(ids)
    return None


@pytest.fixture(scope="module")
def model(gemma3_path):
    return briolette.load(gemma3_path, weights="mapped")


def test_same_text_as_transformers(model, gemma3_path):
    prompts = [model.tokenize(text) for text in PROMPTS]
    answers = peer("transformers_greedy.py", gemma3_path, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert first_difference(model, prompt, answer["tokens"]) is None


def test_differences_from_llama_cpp_are_near_ties(model, gemma3_path):
    """llama.cpp rounds activations to 8 bits, which moves logits by tenths: what it prefers, we nearly do."""
    prompts = [model.tokenize(text) for text in PROMPTS]
    answers = peer("llama_cpp_greedy.py", gemma3_path, prompts)
    found = [first_difference(model, p, a["tokens"]) for p, a in zip(prompts, answers, strict=True)]
    gaps = [difference[1] for difference in found if difference is not None]
    print("first differences (place, our gap):", found)
    assert max(gaps, default=0.0) < 0.15
    assert sum(gap < 0.1 for gap in gaps) >= len(gaps) - 1
