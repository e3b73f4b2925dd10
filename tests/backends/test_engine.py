"""The engine and the model around it: caches, rings, rewinding, limits, lifetimes, broken files."""

from __future__ import annotations

import gc
import shutil
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

import briolette
from briolette.backends.base import Options, Weights
from briolette.backends.cpu.engine import CpuEngine
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module
from briolette.compiler.pipeline import front
from briolette.engine.gguf import open_gguf
from briolette.engine.model import Model
from briolette.engine.source import architecture

MODELS = Path(__file__).parents[1] / "oracle" / "models"
SLIDING = "gemma3_scaled"  # windows of 6 positions
CHUNK = 7


def loaded(name: str = SLIDING, backend: str = "cpu", **how: object) -> Model:
    how = {"context": 64, "chunk": CHUNK, "threads": 2} | how
    return briolette.load(MODELS / f"{name}.gguf", backend=backend, **how)


@cache
def shared(name: str = SLIDING, backend: str = "cpu", kv: str = "f32") -> Model:
    return loaded(name, backend, kv=kv)


def answers(name: str = SLIDING) -> tuple[list[int], np.ndarray]:
    data = np.load(MODELS / f"{name}.npz")
    return data["tokens"].tolist(), data["logits"]


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def count_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens every later step of the model computes."""
    seen: list[int] = []
    step = model.engine.step

    def counting(tokens: list[int], start: int, logits: str = "last") -> np.ndarray:
        seen.append(len(tokens))
        return step(tokens, start, logits)

    monkeypatch.setattr(model.engine, "step", counting)
    return seen


# --- the KV cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kv", "bound"), [("gemma4_e2b", "f16", 3e-4), ("gemma2_odd", "bf16", 2e-3)])
def test_caches_of_fewer_bits(name, kv, bound):
    """Both backends round to the same 16 bits; a value on the edge may fall to either side."""
    tokens, logits = answers(name)
    model, reference = shared(name, kv=kv), shared(name, "reference", kv)
    found, expected = model.logits(tokens), reference.logits(tokens)
    assert error(found, expected) <= bound
    assert error(found, expected) <= error(expected, logits) / 3  # against what rounding changes at all
    one_by_one = np.array([model.prefill(tokens[: i + 1]) for i in range(len(tokens))])
    assert error(one_by_one, expected) <= bound
    assert {p.memory.dtype for p in model.engine.planes.values()} == {np.dtype(np.uint16)}


def planes(model: Model) -> dict[tuple[int, str], tuple[int, int]]:
    """Capacity and bytes of every cache plane."""
    model.prefill([1, 2, 3])
    return {key: (p.capacity, p.memory.nbytes) for key, p in model.engine.planes.items()}


def test_sliding_layers_have_rings_and_shared_layers_nothing():
    """gemma4_e2b: S F S F | S S F, the last three without K and V; windows of 7; heads of 8 and of 24."""
    found = planes(shared("gemma4_e2b"))
    assert set(found) == {(layer, plane) for layer in range(4) for plane in "kv"}
    ring = 7 + CHUNK
    for layer, size in ((0, 8), (1, 24), (2, 8), (3, 24)):
        capacity = ring if size == 8 else 64
        assert found[layer, "k"] == found[layer, "v"] == (capacity, 4 * capacity * size)


def test_rings_are_no_larger_than_the_context():
    model = loaded(context=5, chunk=3)
    assert {capacity for capacity, _ in planes(model).values()} == {5}
    model.close()


def test_planes_are_shared_by_all_programs():
    model = loaded()
    tokens, logits = answers()
    model.logits(tokens[:20])
    before = {key: p.memory.ctypes.data for key, p in model.engine.planes.items()}
    found = model.engine.step(tokens[20:23], 20)  # another program continues from what the first has cached
    assert {key: p.memory.ctypes.data for key, p in model.engine.planes.items()} == before
    assert error(found[0], logits[22]) <= 2e-5
    model.close()


# --- reuse and rewinding ----------------------------------------------------------------------------


def expected(ids: list[int]) -> np.ndarray:
    return shared(SLIDING, "reference").logits(ids)[-1]


def test_only_what_is_new_is_computed(monkeypatch):
    model, (tokens, logits) = loaded("llama_plain"), answers("llama_plain")
    seen = count_tokens(model, monkeypatch)
    model.prefill(tokens[:10])
    found = model.prefill(tokens[:14])
    assert error(found, logits[13]) <= 1e-5
    assert error(model.prefill(tokens[:14]), logits[13]) <= 1e-5  # nothing is new: the last for its logits
    assert error(model.prefill(tokens[:5]), logits[4]) <= 1e-5
    model.prefill([*tokens[:3], 70, 71])
    assert seen == [10, 4, 1, 1, 2]
    model.close()


def test_rewinding_within_and_beyond_the_ring(monkeypatch):
    """A ring of 6 + 7 positions: with 26 written it holds 13 to 25, which is enough to go on from 18."""
    model, (tokens, _) = loaded(), answers()
    seen = count_tokens(model, monkeypatch)
    model.prefill(tokens)
    assert len(tokens) == 26
    assert model.engine.rewindable(26, 18)
    assert not model.engine.rewindable(26, 17)
    other = [*tokens[:18], 9, 8, 7]
    assert error(model.prefill(other), expected(other)) <= 2e-5
    assert seen[1:] == [3]
    other = [*tokens[:12], 9, 8, 7]
    assert error(model.prefill(other), expected(other)) <= 2e-5
    assert seen[2:] == [15]  # all of it
    model.close()


def test_what_a_ring_has_overwritten_stays_lost():
    """After a rewind the cache is short again, yet its rings have no more than what the long run left."""
    model, (tokens, _) = loaded(), answers()
    model.prefill(tokens)
    model.prefill(tokens[:19])
    assert len(model.cached) == 19
    assert not model.engine.rewindable(19, 16)
    other = [*tokens[:16], 5]
    assert error(model.prefill(other), expected(other)) <= 2e-5
    model.close()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_sequence_of_prompts(data):
    """Prompts that share beginnings, in any order, on one model: as if each were the first."""
    model, ids = shared(), [1]
    for _ in range(data.draw(st.integers(2, 6))):
        kept = data.draw(st.integers(0, len(ids)))
        new = data.draw(st.lists(st.integers(10, 13), min_size=1, max_size=30))
        ids = (ids[:kept] + new)[:64]
        assert error(model.prefill(ids), expected(ids)) <= 2e-5


def test_an_interrupted_prompt(monkeypatch):
    """Ctrl-C between two chunks, and just after a step before the model has noted it."""
    model, (tokens, logits) = loaded(), answers()
    model.prefill(tokens[:8])
    run = model.engine._run

    def interrupt(after: int):
        left = [after]

        def limited(*args):
            result = run(*args)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return result

        return limited

    for after in (1, 2):
        monkeypatch.setattr(model.engine, "_run", interrupt(after))
        with pytest.raises(KeyboardInterrupt):
            model.prefill([*tokens[:8], *range(20, 40)])
        monkeypatch.setattr(model.engine, "_run", run)
        assert error(model.prefill(tokens), logits[-1]) <= 2e-5
        model.prefill(tokens[:8])
    model.close()


# --- generation -------------------------------------------------------------------------------------


def continued(model: Model, prompt: list[int], count: int) -> str:
    return "".join(model.generate(prompt, max_tokens=count))


def test_generation_does_not_depend_on_what_came_before():
    tokens, _ = answers()
    fresh = continued(shared(SLIDING, "reference"), tokens[:9], 20)
    model = loaded()
    assert continued(model, tokens[:9], 20) == fresh
    model.logits(tokens)
    assert continued(model, tokens[:9], 20) == fresh
    model.close()


def test_two_generations_in_turns():
    """Both use the model's one cache; each still continues its own text."""
    tokens, _ = answers()
    prompts = tokens[:9], tokens[3:20]
    alone = [continued(shared(), prompt, 12) for prompt in prompts]
    model = loaded()
    first, second = (model.generate(prompt, max_tokens=12) for prompt in prompts)
    texts = ["", ""]
    for _ in range(14):
        texts[0] += next(first, "")
        texts[1] += next(second, "")
    assert texts == alone
    model.close()


def test_two_models_in_turns():
    (a, wanted_a), (b, wanted_b) = answers("gemma4_moe"), answers("llama_scaled")
    one, two = loaded("gemma4_moe"), loaded("llama_scaled")
    for count in (3, 9, 10, 17):
        assert error(one.prefill(a[:count]), wanted_a[count - 1]) <= 2e-5
        assert error(two.prefill(b[:count]), wanted_b[count - 1]) <= 2e-5
    one.close()
    two.close()


def test_a_model_in_another_thread():
    tokens, logits = answers()
    found: list[np.ndarray] = []
    model = loaded()
    model.prefill(tokens[:4])
    for count in (9, 10):
        thread = threading.Thread(target=lambda count=count: found.append(model.prefill(tokens[:count])))
        thread.start()
        thread.join(30)
    assert error(np.array(found), logits[8:10]) <= 2e-5
    model.close()


# --- limits -----------------------------------------------------------------------------------------


def test_a_full_context():
    tokens, logits = answers()
    model = loaded(context=12)
    assert error(model.logits(tokens[:12]), logits[:12]) <= 1e-5
    with pytest.raises(BrioletteError, match="do not fit into a context of 12"):
        model.prefill(tokens[:13])
    # Twelve positions: the prompt takes ten, and the last token is never fed back.
    assert len(list(model.generate(tokens[:10], max_tokens=50))) <= 4
    assert len(model.cached) <= 12
    model.close()


@pytest.mark.parametrize(
    ("ids", "start", "message"),
    [
        ([], 0, "at least one token"),
        ([[1, 2]], 0, "at least one token"),
        ([80], 0, "from 0 to 79"),
        ([3, -1], 0, "from 0 to 79"),
        ([1 << 40], 0, "from 0 to 79"),
        ([1], 64, "do not fit"),
        ([1, 2], 63, "do not fit"),
        ([1], -1, "do not fit"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_steps_that_cannot_be(backend, ids, start, message):
    """Nothing that would read or write outside of memory gets as far as native code."""
    with pytest.raises(BrioletteError, match=message):
        shared(SLIDING, backend).engine.step(ids, start)


@pytest.mark.parametrize("context", [1, 2, 4])
def test_contexts_smaller_than_the_window(context):
    tokens, logits = answers()
    model = loaded(context=context)
    assert error(model.logits(tokens[:context]), logits[:context]) <= 1e-5
    assert error(model.prefill(tokens[:1]), logits[0]) <= 2e-5
    assert error(model.prefill(tokens[:context]), logits[context - 1]) <= 2e-5
    model.close()


def test_one_token_and_one_layer(tmp_path):
    path = tiny_llama.write(tmp_path / "one.gguf", layers=1)
    model = briolette.load(path, context=16, chunk=200, threads=3)
    reference = briolette.load(path, backend="reference", context=16)
    wanted = reference.logits([3, 4, 5])
    assert error(model.prefill([3]), wanted[0]) <= 1e-5
    assert error(model.prefill([3, 4, 5]), wanted[2]) <= 1e-5
    assert error(model.logits([3]), wanted[:1]) <= 1e-5
    model.close()


# --- lifetimes and broken files ---------------------------------------------------------------------


def test_a_closed_model_says_so():
    for backend in ("cpu", "reference"):
        model = loaded(backend=backend)
        model.prefill([1, 2])
        model.close()
        model.close()
        with pytest.raises(BrioletteError, match="closed"):
            model.prefill([1, 2, 3])


def test_an_engine_keeps_what_it_reads(tmp_path):
    """The mapped file lives as long as the engine, even when its name and its model are gone."""
    path = tmp_path / "model.gguf"
    shutil.copy(MODELS / f"{SLIDING}.gguf", path)
    model = briolette.load(path, context=64, chunk=CHUNK)
    tokens, logits = answers()
    engine = model.engine
    engine.step(tokens[:3], 0)
    path.unlink()
    del model
    gc.collect()
    filler = [np.full(1 << 16, 7, np.uint8) for _ in range(50)]
    assert error(engine.step(tokens, 0)[0], logits[-1]) <= 2e-5
    del filler
    engine.close()


def unrolled(name: str = SLIDING) -> tuple[Module, Weights]:
    file = open_gguf(MODELS / f"{name}.gguf")
    return front(architecture(None, file.header), file.header), Weights(file.tensor_bytes)


def test_weights_that_cannot_be_read():
    """The error reaches the caller, and a later attempt finds an engine that still works."""
    module, weights = unrolled()
    failing = [True]

    def stored(name: str) -> np.ndarray:
        if failing[0] and name == "blk.3.ffn_up.weight":
            raise OSError("the disk is gone")
        return weights.stored(name)

    engine = CpuEngine(module, Weights(stored), Options(context=64, chunk=CHUNK, threads=2))
    tokens, logits = answers()
    with pytest.raises(OSError, match="the disk is gone"):
        engine.step(tokens, 0)
    failing[0] = False
    assert error(engine.step(tokens, 0)[0], logits[-1]) <= 2e-5
    engine.close()


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: np.repeat(a, 2)[::2], lambda a: np.append(a, a)])
def test_weights_of_the_wrong_size(change):
    module, weights = unrolled()
    broken = Weights(lambda n: change(weights.stored(n)) if n == "output_norm.weight" else weights.stored(n))
    engine = CpuEngine(module, broken, Options(context=64, chunk=CHUNK))
    with pytest.raises(BrioletteError, match=r"output_norm.weight has \d+ bytes"):
        engine.step([1], 0)
    engine.close()


def test_broken_weights_show_in_the_logits(tmp_path):
    """NaN in a file is NaN in the logits of whatever reads it, not a plausible number."""
    path = tiny_llama.write(tmp_path / "nan.gguf", layers=1, broken="blk.0.ffn_down")
    model = briolette.load(path, context=16, threads=2)
    assert np.isnan(model.logits([1, 2, 3])).all()
    assert np.isnan(model.prefill([1, 2, 3])).all()
    assert np.isnan(model.prefill([1, 2, 3, 4])).all()
    model.close()
    # Keys that are NaN: every softmax over them is.
    path = tiny_llama.write(tmp_path / "nan_k.gguf", layers=1, broken="blk.0.attn_k")
    model = briolette.load(path, context=16, threads=2)
    assert np.isnan(model.logits([1, 2, 3])).all()
    assert np.isnan(model.prefill([1, 2, 3, 4])).all()
    model.close()
