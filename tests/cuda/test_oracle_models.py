"""Whole models on the emulated device: logits beside those of transformers, as `tests/test_oracle.py` has them for the
other backends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from running import error

from briolette.backends.base import Options, Weights
from briolette.backends.cuda import engine as cuda
from briolette.backends.reference import ReferenceEngine
from tests.test_oracle import CHUNK, CONTEXT, OURS, TOLERANCE, WHOLE, opened

from devices import opened as open_device

# In f16 and integers: models that enlarge rounding errors a hundred times (their bounds above) are left out.
BOUNDS = {"gemma3_scaled": 4e-3, "gemma4_moe": 4e-3}  # large scores, and a router: both move with roundings
STEADY = ("gemma4_plain", "gemma4_moe", "gemma3_scaled", "gemma2_caps", "llama_scaled", "qwen3_tied")


def engine_of(name: str, **options: object) -> cuda.CudaEngine:
    file, module, _ = opened(name)
    given = Options(**{"context": CONTEXT, "chunk": CHUNK, "weights": "mapped"} | options)
    return cuda.compile(module, Weights(file.tensor_bytes), given, open_device())


@pytest.fixture(params=OURS)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, cuda.CudaEngine]]:
    made = engine_of(request.param)
    yield request.param, made
    made.close()


def test_prefill_in_chunks_then_decode(engine):
    name, made = engine
    answers = opened(name)[2]
    tokens, start = answers["tokens"], CHUNK + 3
    found = np.concatenate(
        [made.step(tokens[:start], 0), *(made.step([t], start + i) for i, t in enumerate(tokens[start:]))]
    )
    assert error(found, answers["logits"][start - 1 :]) <= 2 * TOLERANCE.get(name, 1e-5)
    # What an engine allocates is what was planned.
    module = opened(name)[1]
    planned = cuda.memory(module, made.options.cache)(made.options)
    assert made.allocated == planned.allocated


@pytest.mark.parametrize("name", WHOLE)
def test_every_token_and_values_on_the_way(name):
    file, module, answers = opened(name)
    made = engine_of(name)
    assert error(made.step(answers["tokens"], 0, "all"), answers["logits"]) <= TOLERANCE.get(name, 1e-5)
    wanted = [item for item, label in module.names.items() if label in ("x", "y", "a.0")][-3:]
    plain = ReferenceEngine(module, Weights(file.tensor_bytes), made.options)
    for found, exact in zip(*(some.values(answers["tokens"], wanted) for some in (made, plain)), strict=True):
        assert error(found, exact) <= 2e-5
    made.close()


@pytest.mark.parametrize("name", STEADY)
def test_in_integers_and_f16(name):
    answers = opened(name)[2]
    made, tokens = engine_of(name, weights="packed", cache="f16"), answers["tokens"]
    found = np.concatenate(
        [made.step(tokens[:-2], 0), *(made.step([t], len(tokens) - 2 + i) for i, t in enumerate(tokens[-2:]))]
    )
    assert error(found, answers["logits"][-3:]) <= BOUNDS.get(name, 2e-3)
    made.close()


def test_rings_are_put_back():
    """After a checkpoint, steps that go on from there may be taken again."""
    name = "gemma3_period"
    answers = opened(name)[2]
    made, tokens = engine_of(name, context=256), [*answers["tokens"]] * 6
    made.step(tokens[:40], 0)
    restore = made.checkpoint()
    first = made.step(tokens[40:90], 40)
    assert not made.rewindable(90, 40)
    restore()
    assert made.rewindable(40, 40)
    assert np.array_equal(made.step(tokens[40:90], 40), first)
    made.close()
