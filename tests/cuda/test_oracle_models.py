"""Whole models on the emulated device: logits beside those of transformers, as `tests/test_oracle.py` has them for the
other backends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from running import error

from briolette.backends.base import Options, Weights
from briolette.backends.cuda import engine as cuda
from briolette.backends.reference import ReferenceEngine
from briolette.compiler.ir import Module
from briolette.compiler.pipeline import front
from briolette.engine.source import architecture
from tests.test_oracle import CHUNK, CONTEXT, OURS, TOLERANCE, WHOLE, opened

from devices import opened as open_device

# Models that enlarge rounding errors a hundred times (their bounds above) are left out.
STEADY = ("gemma4_plain", "gemma4_moe", "gemma3_scaled", "gemma2_caps", "llama_scaled", "qwen3_tied")
MOST = 2e-3
EXACT = 2e-5  # where nothing is rounded but sums
ROUNDED = 1e-3  # beside numpy that rounds the same values: some lie on a threshold
# K and V in f16 alone, all else in f32, move this one's router: numpy has 2.2e-3 then.
CACHE = {"gemma4_moe": 2.5e-3}


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


def prompted(made: cuda.CudaEngine, tokens: np.ndarray) -> np.ndarray:
    """Logits of a prompt, and of the last two tokens one by one."""
    first = made.step(tokens[:-2], 0)
    rest = [made.step([token], len(tokens) - 2 + i) for i, token in enumerate(tokens[-2:])]
    made.close()
    return np.concatenate([first, *rest])


@pytest.mark.parametrize("name", STEADY)
def test_with_caches_of_f32_and_f16(name):
    """With a cache of f32, as files of f32 have, and one of f16: beside numpy that rounds the same K and V."""
    file, module, answers = opened(name)
    tokens, logits = answers["tokens"], answers["logits"][-3:]
    assert error(prompted(engine_of(name, weights="packed"), tokens), logits) <= EXACT
    found = prompted(engine_of(name, weights="packed", cache="f16"), tokens)
    assert error(found, logits) <= CACHE.get(name, MOST)
    plain = ReferenceEngine(module, Weights(file.tensor_bytes), Options(context=CONTEXT, cache="f16"))
    assert error(found, plain.step(tokens, 0, "all")[-3:]) <= ROUNDED


def in_blocks(name: str) -> tuple[Module, Weights]:
    """A model with its matrices in q8_0, and in f16 where rows are not whole blocks: files of f32 have no products in
    integers or on tensor cores."""
    file = opened(name)[0]
    infos, contents = dict(file.header.tensors), {}
    for info in file.header.tensors.values():
        if len(info.shape) == 1:
            continue
        values = file.tensor_bytes(info.name).view(np.float32).reshape(-1, info.shape[-1])
        whole = info.shape[-1] % 32 == 0
        infos[info.name] = replace(info, format="q8_0" if whole else "f16")
        contents[info.name] = (q8_0(values) if whole else values.astype(np.float16)).view(np.uint8).reshape(-1)
    header = replace(file.header, tensors=infos)
    stored = Weights(lambda tensor: contents[tensor] if tensor in contents else file.tensor_bytes(tensor))
    return front(architecture(None, header), header), stored


def q8_0(values: np.ndarray) -> np.ndarray:
    """Blocks of 32 as an f16 scale and a byte each."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / np.maximum(scales.astype(np.float32), 1e-9)).clip(-127, 127).astype(np.int8)
    return np.hstack([scales.view(np.uint8), codes.view(np.uint8)])


@pytest.mark.parametrize("name", STEADY)
def test_weights_in_blocks(name):
    """The same for products: beside numpy, in f32 with the weights that are stored."""
    (module, weights), tokens = in_blocks(name), opened(name)[2]["tokens"]
    options = Options(context=CONTEXT, chunk=len(tokens), weights="packed")
    made = cuda.compile(module, weights, options, open_device())
    assert "gemm" in {kernel.family for kernel in made.group("prefill").made.kernels}
    plain = ReferenceEngine(module, weights, Options(context=CONTEXT))
    assert error(prompted(made, tokens), plain.step(tokens, 0, "all")[-3:]) <= MOST


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
