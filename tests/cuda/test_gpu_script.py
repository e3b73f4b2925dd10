"""`make gpu`, as far as it goes without a GPU: its parts on the emulated device, and how it tells what failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu
import gpu_speed
import gpu_tiny
import numpy as np
import pytest

from briolette.engine.gguf import open_gguf

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("run", gpu_tiny.RUNS, ids=lambda run: run[0])
def test_tiny_models_run_end_to_end(run, device):
    found = gpu_tiny.run(*run, device)
    assert np.isfinite(found).all()
    assert len(found) == 1 + 3 + len(gpu_tiny.PROMPT) + 3


def test_speeds_are_measured_and_written(cuda, tmp_path, monkeypatch):
    tiny = open_gguf(gpu_tiny.MODELS / "gemma4_moe.gguf")
    monkeypatch.setattr(gpu_speed, "sizes", lambda name: name)
    monkeypatch.setattr(gpu_speed, "synthetic", lambda sizes: tiny)
    plan = gpu_speed.Plan(
        models=["one"], prompts=(3,), generated=1, depths=(0,), of_codecs="two", codecs=("f16", "nothing"),
        codec_depths=(8,), repetitions=1, chunk=4, copied=1 << 12,
    )  # fmt: skip
    out = tmp_path / "speed.json"
    assert gpu_speed.measured(plan, out) == 1
    found = json.loads(out.read_text())
    assert [one["synthetic"] for kind in ("models", "codecs") for one in found[kind]] == ["one", "two"]
    assert [(r["test"], r["depth"]) for r in found["codecs"][0]["results"]] == [("decode", 8)]
    assert found["models"][0]["kernels"]
    assert found["models"][0]["copy_gb_s"] > 0
    assert "two with nothing" in found["problems"][0]


def test_each_failure_is_told_and_the_rest_runs(monkeypatch, tmp_path, capsys):
    def fails(name: str) -> gpu.Result:
        raise ValueError("as planned")

    monkeypatch.setattr(gpu, "card_name", lambda: "Some Card 3000")
    monkeypatch.setattr(gpu.shutil, "which", lambda command: None)
    monkeypatch.setitem(gpu.RUN, "tests", fails)
    monkeypatch.setitem(gpu.RUN, "speed", lambda name: ("", {"models": []}))
    out = tmp_path / "new" / "found.json"
    assert gpu.main(["--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "FAILED: tests, memcheck, racecheck, synccheck, initcheck" in said
    found = json.loads(out.read_text())
    assert (found["card"], found["passed"], found["speed"]) == ("Some Card 3000", False, {"models": []})
    assert found["steps"]["tests"]["problem"] == "ValueError: as planned"
    assert "comes with the CUDA toolkit" in found["steps"]["memcheck"]["problem"]
    assert gpu.main(["--out", str(out), "--only", "speed"]) == 0


def test_without_a_gpu_it_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu.main([]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("there is no GPU to validate on: the CUDA backend needs CuPy")
    assert told.err.count("\n") == 1


def test_files_that_are_left_out_are_there():
    """What is left out by name on the GPU must not lose its name."""
    assert all((HERE / name).exists() for name in gpu.ELSEWHERE)
    run = subprocess.run([sys.executable, HERE / "gpu.py", "--only", "nothing"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "there is no step nothing" in run.stderr
