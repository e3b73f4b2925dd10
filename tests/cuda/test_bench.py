"""Measurements on a device, as far as they go without one: what is measured, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from briolette.backends.cuda import measure
from briolette.engine.bench import on_device
from briolette.engine.cli import app

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "oracle" / "models" / "gemma4_e2b.gguf"
SMALL = ("--prompt", 5, "--generate", 2, "--depth", "0,9", "--chunk", 4, "-r", 1)


def called(*args: object, code: int = 0):
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", *map(str, args)])
    assert found.exit_code == code, found.output
    return found


@pytest.fixture
def small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that an emulator can make."""
    monkeypatch.setattr(on_device, "copy_bandwidth", lambda device: measure.copy_bandwidth(device, 1 << 14, 2))


def test_bench_measures_a_device(cuda, small_copy):
    found = json.loads(called(MODEL, "--backend", cuda, *SMALL, "--profile", "--json").stdout)
    assert found["copy_gb_s"] > 0
    assert [(r["test"], r["tokens"], r["depth"]) for r in found["results"]] == [
        ("prefill", 5, 0),
        ("decode", 2, 0),
        ("prefill", 5, 9),
        ("decode", 2, 9),
    ]
    assert all(r["rate"] > 0 < r["read_gb_s"] for r in found["results"])
    assert {kernel["depth"] for kernel in found["kernels"]} == {0, 9}
    assert {"matvec", "attend", "attend_merge", "rows"} <= {
        family for kernel in found["kernels"] for family in kernel["families"]
    }
    page = (ROOT / "docs" / "cli.md").read_text().split("\n## bench\n")[1].split("\n## ")[0]
    assert [key for key in (*found, *found["results"][0], *found["kernels"][0]) if f"`{key}`" not in page] == []


def test_bench_measures_several_sequences_on_a_device(cuda, small_copy):
    given = ("--prompt", 0, "--generate", 2, "--depth", 3, "--chunk", 4, "-r", 1, "--sequences", "1,3")
    one, three = json.loads(called(MODEL, "--backend", cuda, *given, "--json").stdout)["results"]
    assert [(r["tokens"], r["sequences"]) for r in (one, three)] == [(2, 1), (2, 3)]
    assert three["rate"] == pytest.approx(6 / three["seconds"][0], rel=0.01)


def test_the_copy_copies(device):
    assert measure.copy_bandwidth(device, 1 << 12, 3) > 0
    kernel, size = device.module(measure.COPY % 100).kernel("copy"), 16 * 100
    here, there = device.alloc(size), device.alloc(size)
    content = bytes(i % 251 for i in range(size))
    device.write(here, np.frombuffer(content, np.uint8))
    device.launch(kernel, (3, 1, 1), 32, [here, there])
    assert device.read(there, size).tobytes() == content


def test_mistakes(cuda):
    for more, words in (
        (("--threads", 2), "of measurements on the CPU"),
        (("--prefill", "exact,fast"), "one kind at a time"),
    ):
        assert words in called(MODEL, "--backend", cuda, *SMALL, *more, code=2).stderr
    assert "the backends cpu and cuda, not reference" in called(MODEL, "--backend", "reference", code=2).stderr
    assert "not both" in called("--backend", cuda, code=2).stderr
