"""Whole models for other machines: AArch64 and plain x86-64 by their object code, older x86-64 by running as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from programs import ARM, PLAIN, RUNNABLE, undefined

from briolette.backends.base import Options, Weights
from briolette.backends.cpu import ceilings, jit
from briolette.backends.cpu.emit import Emitter, layout_of
from briolette.backends.cpu.engine import GROUPS, CpuEngine
from briolette.compiler.pipeline import front
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture

MODELS = Path(__file__).parents[1] / "oracle" / "models"
WHOLE = ("gemma4_e2b", "gemma4_moe", "llama_plain")  # between them, every kind of kernel


def opened(name: str, **how: object) -> tuple[CpuEngine, dict[str, np.ndarray]]:
    file = open_gguf(MODELS / f"{name}.gguf")
    module = front(architecture(None, file.header), file.header)
    options = Options(context=64, chunk=7, threads=2)
    engine = CpuEngine(module, Weights(file.tensor_bytes), options, **how)
    return engine, dict(np.load(MODELS / f"{name}.npz"))


@pytest.mark.parametrize("target", [ARM, PLAIN], ids=["aarch64", "x86-64"])
@pytest.mark.parametrize(("name", "profiled"), [*((name, False) for name in WHOLE), (WHOLE[0], True)])
def test_whole_models_for_other_machines(name, profiled, target):
    """Code for AArch64 and for any x86-64 needs nothing from outside but these functions of the C library."""
    engine, _ = opened(name)  # for this machine; nothing is run
    plans = {program: engine.plan(program) for program in GROUPS["generate"]}
    emitter, layout = Emitter(target, profiled), layout_of(list(plans.values()))
    for program, plan in plans.items():
        emitter.program(program, plan, layout)
    code = jit.compile_object(emitter.module, target)
    assert undefined(code) <= {"sched_yield", "cos", "sin", "memcpy", "memset", "memmove"}
    engine.close()


# One model is enough for the few look-ups in which ssse3 differs from sse2.
OLDER = [*((name, m) for m in ("sse2", "avx2") for name in WHOLE), ("gemma4_moe", "ssse3")]


@pytest.mark.parametrize(("name", "machine"), [pair for pair in OLDER if pair[1] in RUNNABLE])
def test_whole_models_as_older_machines(name, machine):
    """test_oracle.py runs everything with all that this machine has."""
    engine, answers = opened(name, target=RUNNABLE[machine])
    tokens, wanted = answers["tokens"], answers["logits"]
    if machine == "ssse3":
        found = engine.step(tokens, 0, "all")
    else:
        first = engine.step(tokens[:10], 0)
        rest = [engine.step([token], 10 + i) for i, token in enumerate(tokens[10:])]
        found, wanted = np.concatenate([first, *rest]), wanted[9:]
    assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)
    engine.close()


@pytest.mark.parametrize("target", [ARM, PLAIN], ids=["aarch64", "x86-64"])
def test_ceilings_for_other_machines(target):
    assert undefined(ceilings.code(target)) == set()


@pytest.mark.parametrize("machine", RUNNABLE)
def test_ceilings_as_older_machines(machine, monkeypatch):
    for name, value in {"LEAST": 8 << 20, "CACHES": 0, "SECONDS": 0.001}.items():
        monkeypatch.setattr(ceilings, name, value)
    found = ceilings.measure(1, RUNNABLE[machine])
    assert min(found.read, found.integers, found.floats) > 1e6
