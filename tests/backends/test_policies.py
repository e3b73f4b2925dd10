"""Compressed caches in whole models: the CPU engine against the reference, which codes in numpy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import briolette
from briolette.backends.base import Engine, Options, Weights
from briolette.backends.cpu.engine import memory
from briolette.compiler.errors import BrioletteError
from briolette.engine.backends import backend_named
from briolette.engine.gguf import open_gguf
from briolette.engine.kv import settled
from briolette.engine.model import Model
from briolette.engine.source import source_of

MODELS = Path(__file__).parents[1] / "oracle" / "models"
CODES = "all=k:tq6,v:tq4;sink=0;recent=0"
NEAR = "full=k:tq5,v:tq3;sliding=tq8;sink=3;recent=9"
POLICIES = (
    CODES,
    NEAR,
    "all=tq2;scale=eden;sink=2;recent=5",
    "full=k:f16,v:tq4;sink=0;recent=4",
    "all=q8_0;rotate=off",
)
WHOLE = ("gemma4_donors", "gemma2_caps", "llama_scaled")  # shared caches, windows and a softcap, one kind of layer
# A value on a threshold may go to either code: that moves logits by less than a tenth of what coding does.
TIES = 2e-2


def opened(name: str, kv: str, backend: str = "cpu", **how: object) -> Model:
    how = {"context": 96, "chunk": 16, "threads": 2} | how
    return briolette.load(MODELS / f"{name}.gguf", backend=backend, kv=kv, **how)


def tokens(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(3, 60, count).tolist()


@cache
def wanted(name: str, kv: str, count: int = 70) -> np.ndarray:
    return opened(name, kv, "reference").logits(tokens(count))


def error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kv", POLICIES)
def test_logits_are_the_references(name, kv):
    found = opened(name, kv).logits(tokens(70))
    assert error(found, wanted(name, kv)) < TIES
    assert error(wanted(name, "f32"), wanted(name, kv)) > 1e-3  # there is something to be seen


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kv", [CODES, NEAR])
def test_a_prompt_in_chunks_and_tokens_one_by_one(name, kv):
    engine, ids = opened(name, kv, weights="mapped").engine, tokens(70)
    whole = wanted(name, kv)
    prompt = engine.step(ids[:41], 0)
    assert error(prompt[0], whole[40]) < TIES
    for at in range(41, 70):
        assert error(engine.step([ids[at]], at)[0], whole[at]) < TIES


ONCE = [
    ("gemma4_moe", "global=kv:f32;local=f32"),
    ("gemma4_dense", "once=kv:f32;all=f32"),
    ("gemma4_qkv", "all=f32;once=kv:f32"),
]


@pytest.mark.parametrize(("name", "kv"), ONCE)
def test_keys_and_values_kept_once(name, kv):
    """As kept apart: prompts in chunks, sequences side by side, tokens one by one. The file says which pairs turn."""
    apart, once = opened(name, "f32", sequences=2), opened(name, kv, sequences=2)
    assert once.options.cache == f"{kv};turning=2"
    texts = [tokens(70, seed) for seed in range(2)]

    def logits(model: Model) -> list[np.ndarray]:
        engine, prompts = model.engine, [text[:41] for text in texts]
        found = [engine.step(prompt, 0, sequence=slot)[0] for slot, prompt in enumerate(prompts)]
        for at in range(41, 60):
            found += [*engine.batch([text[at] for text in texts], [at] * 2, [0, 1])]
        found += [engine.step([texts[0][at]], at)[0] for at in range(60, 70)]
        return [*found, *model.logits(texts[1])]

    assert max(map(error, logits(once), logits(apart))) < 1e-5
    assert error(opened(name, kv, "reference").logits(texts[1]), apart.logits(texts[1])) < 1e-4


def enlarged(backend: str, kv: str) -> Engine:
    """gemma4_dense with random global heads of 128 values, of which 32 turn: large enough for blocks of codes."""
    file = open_gguf(MODELS / "gemma4_dense.gguf")
    sizes = {f"gemma4.{key}": 128 for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")}
    factors = np.repeat(np.array([1, 1e30], np.float32), [16, 48])
    tensors, changed = {}, {"rope_freqs.weight": factors}
    for name, tensor in file.header.tensors.items():
        if name.startswith(("blk.2.attn_", "blk.5.attn_")) and tensor.shape != (48,):
            rows, *columns = tensor.shape
            columns = [8 * n for n in columns] if "output" in name else columns
            shape = (rows if "output" in name else 8 * rows, *columns)
            scale = 1.0 if not columns else columns[0] ** -0.5
            rng = np.random.default_rng(len(changed))
            changed[name] = (rng.normal(0.3 * (not columns), 0.3 if not columns else scale, shape)).astype(np.float32)
        tensors[name] = replace(tensor, shape=changed[name].shape) if name in changed else tensor
    header = replace(file.header, metadata=file.header.metadata | sizes, tensors=tensors)

    def stored(name: str) -> np.ndarray:
        return changed[name].view(np.uint8).reshape(-1) if name in changed else file.tensor_bytes(name)

    source = source_of(None, header)
    options = Options(context=96, cache=settled(kv, source, stored), threads=2, chunk=16, weights="mapped")
    return backend_named(backend).compile(source, Weights(stored), options)


@pytest.mark.parametrize("kv", ["balanced;sink=3;recent=9", "once=tqkv6r4;sliding=f32;sink=0;recent=0"])
def test_codes_of_keys_and_values_kept_once(kv):
    reference, apart, engine = enlarged("reference", kv), enlarged("reference", "f32"), enlarged("cpu", kv)
    assert engine.options.cache == f"{kv};turning=16"
    text = tokens(70)
    right, uncoded = (each.step(text, 0, "all") for each in (reference, apart))
    assert error(uncoded, right) > 1e-3
    found = [engine.step(text[:41], 0)[0], *(engine.step([text[at]], at)[0] for at in range(41, 70))]
    assert error(np.array(found), right[40:]) < TIES / 10
    kept = {plane: kept.of.dtype for (slot, plane), kept in engine.planes.items() if slot == 2}
    assert (kept["k"], kept["v"]) == (("tq4_32", "tq6_32") if "tqkv" in kv else ("tq6_32", "tq5_32"))


def test_sequences_side_by_side_are_each_their_own():
    name, kv = "gemma4_donors", NEAR
    engine = opened(name, kv, sequences=3, weights="mapped").engine
    texts = [tokens(30, seed) for seed in range(3)]
    for slot, text in enumerate(texts):
        engine.step(text[:20], 0, sequence=slot)
    for at in range(20, 30):
        found = engine.batch([text[at] for text in texts], [at] * 3, [0, 1, 2])
    alone = opened(name, kv)
    for slot, text in enumerate(texts):
        assert error(found[slot], alone.logits(text)[-1]) < TIES


def test_nothing_of_a_cache_is_kept_but_its_planes():
    """Planes that are another engine's make the logits of its text: there is no shadow in numbers."""
    name, text, other = "gemma4_donors", tokens(40), tokens(40, 2)
    ours, theirs = (opened(name, NEAR, weights="mapped").engine for _ in range(2))
    ours.step(text, 0)
    theirs.step(other, 0)
    for at, plane in ours.planes.items():
        plane.memory[:] = theirs.planes[at].memory
    assert np.array_equal(ours.step([5], 40), theirs.step([5], 40))


def test_codes_are_read_and_not_only_written():
    name, text = "gemma4_donors", tokens(60)
    engine = opened(name, NEAR, weights="mapped").engine
    engine.step(text, 0)
    before = engine.step([5], 60)
    for (_, kind), plane in engine.planes.items():
        if not kind.startswith("near"):
            plane.memory[:] = 0
    assert error(engine.step([5], 60), before) > 1e-2


@pytest.mark.parametrize("kv", [CODES, NEAR, "balanced"])
def test_the_plan_is_what_is_allocated(kv):
    model = opened("gemma4_donors", kv, sequences=2)
    model.engine.step(tokens(20), 0)
    planned = memory(model.module, kv)(model.options, ["generate"])
    assert planned.allocated["kv"] == model.engine.allocated["kv"]


def test_a_cache_that_forgets_what_is_near_says_so():
    """The near ring holds the latest positions: further back there is no going on."""
    model = opened("llama_scaled", "all=tq4;sink=2;recent=4")
    model.engine.step(tokens(60), 0)
    assert model.engine.rewindable(60, 50)
    assert not model.engine.rewindable(60, 20)
    assert opened("llama_scaled", "all=tq4;sink=0;recent=0").engine.rewindable(60, 20)


@pytest.mark.parametrize("kv", ["all=tq9", "nowhere=tq4", "best"])
def test_bad_policies_are_mistakes(kv):
    with pytest.raises(BrioletteError):
        opened("llama_scaled", kv)
