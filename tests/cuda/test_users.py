"""`backend="cuda"` as people meet it: from Python, from the command line, and where the GPU is missing or too small."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import briolette
from briolette.backends.base import ALL_LOGITS_CHUNK, Choice, Options, Room, Source, Weights
from briolette.backends.cuda import engine as cuda_engine
from briolette.backends.cuda.compilation import GROUPS
from briolette.backends.cuda.device import Device
from briolette.compiler.errors import BrioletteError
from briolette.engine.cli import app
from briolette.engine.gguf import open_gguf
from briolette.engine.source import source_of

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
E2B = MODELS / "gemma4_e2b.gguf"


def called(*args: object, code: int = 0) -> str:
    """What a command prints, in one line: on stderr where it is a mistake."""
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, args)))
    assert found.exit_code == code, found.output
    return " ".join((found.stderr if code == 2 else found.stdout).split())


# --- without a GPU ----------------------------------------------------------------------------------


class DriverMissingError(Exception):
    """Stands for CuPy's error of that name."""


def cupy_of(count: int | None, capability: str = "90", free: int = 1 << 40) -> ModuleType:
    """A CuPy that finds so many GPUs, or no driver."""

    def devices() -> int:
        if count is None:
            raise DriverMissingError("cudaErrorInsufficientDriver")
        return count

    runtime = SimpleNamespace(
        CUDARuntimeError=DriverMissingError,
        getDeviceCount=devices,
        getDeviceProperties=lambda index: {"name": b"Some Card"},
        memGetInfo=lambda: (free, free),
    )
    found = ModuleType("cupy")
    found.cuda = SimpleNamespace(
        runtime=runtime,
        Device=lambda: SimpleNamespace(id=0, compute_capability=capability),
        Stream=lambda non_blocking: None,
    )
    found.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 0)
    return found


BROKEN = {
    "no cupy": (None, "needs CuPy: pip install"),
    "no driver": (cupy_of(None), "no usable NVIDIA driver (cudaErrorInsufficientDriver)"),
    "no gpu": (cupy_of(0), "finds no GPU"),
    "old gpu": (cupy_of(1, "75"), "(Some Card) has compute capability 7.5"),
    "small gpu": (cupy_of(1, "90", free=200_000), "that the Some Card has free"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_missing_is_one_sentence(case, monkeypatch):
    cupy, words = BROKEN[case]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(BrioletteError) as raised:
        briolette.load(E2B, backend="cuda")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    told = called("run", E2B, "x", "--backend", "cuda", code=2)
    assert words in told
    assert "Traceback" not in told


def test_too_small_a_gpu_is_told_with_the_plan(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_of(1, free=200_000))
    told = called("run", E2B, "x", "--backend", "cuda", code=2)
    plan = json.loads(called("plan", E2B, "--backend", "cuda", "--json", code=1))
    assert plan["memory"] == 200_000
    for count in (plan["device"], plan["packed"] + plan["decoded"], plan["kv"], 200_000):
        assert briolette.engine.words.size(count) in told


def test_a_plan_needs_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    told = called("plan", E2B, "--backend", "cuda")
    assert "Whether it fits is not known: the CUDA backend needs CuPy" in told
    plan = json.loads(called("plan", E2B, "--backend", "cuda", "--json"))
    assert plan["fits"] is plan["memory"] is plan["largest_context"] is None
    table = open_gguf(E2B).tensor_bytes("per_layer_token_embd.weight").nbytes
    assert plan["tables"] == table  # the table stays in the file
    parts = ("packed", "decoded", "kv", "arena", "scratch", "addresses")
    assert plan["device"] == sum(plan[part] for part in parts) > 0
    assert plan["peak"] == sum(plan[part] for part in ("weights", "looked_up", "metadata", "logits", "process"))
    assert "It fits into the" in called("plan", E2B, "--backend", "cuda", "--memory", plan["device"])
    assert "1 B are missing" in called("plan", E2B, "--backend", "cuda", "--memory", plan["device"] - 1, code=1)


# --- on a device ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [E2B, MODELS / "gemma4_donors.gguf"], ids=lambda p: p.stem)
def test_an_engine_allocates_what_was_planned(path: Path, device: Device):
    file = open_gguf(path)
    source: Source = source_of(None, file.header)
    coded = "compact" if path.stem == "gemma4_donors" else "bf16"  # heads that codecs can keep
    for kv, context, chunk, sequences in (("f16", 33, 8, 1), (coded, 64, 16, 2)):
        options = Options(context, kv, chunk=chunk, sequences=sequences, weights="packed")
        made = cuda_engine.compile(source, Weights(file.tensor_bytes), options, device)
        assert not made.allocated["packed"]
        made.prepare()
        measure = cuda_engine.memory(source, kv)
        assert made.allocated == measure(options, GROUPS[:1]).allocated
        made.step(range(20), 0)
        made.step([1], 20)
        made.choose(1, 21, Choice(0.0, 0, 1.0, 0.0, 1.0, (), 0.5))
        if sequences > 1:
            made.batch([1, 2], [22, 0], [0, 1])
        assert made.allocated == measure(options).allocated
        made.close()


def test_programs_of_batches_and_of_every_logit_are_planned(device: Device):
    """With several sequences, what a batch takes is part of the plan; every token's logits take more."""
    file = open_gguf(E2B)
    source = source_of(None, file.header)
    options = Options(40, "f16", chunk=8, sequences=2, weights="packed")
    measure = cuda_engine.memory(source, "f16")
    one, two = measure(replace(options, sequences=1)), measure(options)
    assert two.arena > one.arena
    assert two.logits == one.logits * min(options.chunk, ALL_LOGITS_CHUNK)
    made = cuda_engine.compile(source, Weights(file.tensor_bytes), options, device)
    made.step([1], 0)
    made.step(range(3), 1, "all")
    assert made.allocated == measure(options, (GROUPS[0], ("all",))).allocated
    made.close()


def test_python_loads_and_compiles(cuda):
    ids = [2, 9, 4, 17, 33]
    model = briolette.load(E2B, backend=cuda, kv="f32", context=32, chunk=8)
    wanted = briolette.load(E2B, backend="reference", kv="f32", context=32).logits(ids)
    assert np.linalg.norm(model.logits(ids) - wanted) < 1e-2 * np.linalg.norm(wanted)
    model.engine.close()
    header = open_gguf(E2B).header
    engine = briolette.compile("gemma4", header, backend=cuda)
    assert engine.vocabulary == wanted.shape[-1]
    with pytest.raises(BrioletteError, match="compiled from a header alone"):
        engine.step([1], 0)


def test_commands_run_on_it(cuda):
    text = called("run", E2B, "the", "-n", 3, "--backend", cuda, "--json", "--context", 32, "--chunk", 8)
    assert json.loads(text)["usage"]["generated"] == 3


def test_room_is_the_devices(cuda):
    assert isinstance(cuda_engine.room(), Room)
    assert cuda_engine.room().bytes > 0
