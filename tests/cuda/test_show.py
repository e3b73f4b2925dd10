"""`show --backend cuda`: bytes from the launch plan against what the op table needs, occupancy, and the command."""

from __future__ import annotations

import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from briolette.backends.base import Options
from briolette.backends.cuda.compilation import GROUPS, Compiled
from briolette.backends.cuda.engine import compilation_of
from briolette.backends.cuda.nvrtc import Resources
from briolette.backends.cuda.occupancy import LIMITS, occupancy
from briolette.backends.cuda.traffic import needed, uses
from briolette.engine.bench.sizes import sizes
from briolette.engine.cli import app
from briolette.engine.commands import kernels as commands
from briolette.engine.source import source_of

ROOT = Path(__file__).resolve().parents[2]
MOE = ROOT / "tests" / "oracle" / "models" / "gemma4_moe.gguf"
MOST = 1.05  # times the bytes of weights and cache that a decode step may move
DEPTH = 4095


@cache
def compiled(name: str, kv: str) -> Compiled:
    compilation = compilation_of(source_of(None, sizes(name).header))
    return compilation.compiled(Options(context=DEPTH + 1, cache=kv, weights="packed"), GROUPS[0])


def called(*args: object, code: int = 0):
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", *map(str, args)])
    assert found.exit_code == code, found.output
    return found


@pytest.mark.parametrize(
    ("name", "kv"),
    [
        ("gemma4-e2b", "f16"),
        ("gemma4-e2b", "compact"),
        ("gemma4-12b", "balanced;turning=64"),
        ("gemma4-26b-a4b", "f16"),
    ],
)
def test_decoding_reads_each_weight_once_and_little_else(name, kv):
    made = compiled(name, kv)
    plan = made.programs["decode"].plan
    found, least = uses(plan, made.layout, DEPTH), needed(plan, DEPTH)
    assert [use.launch for use in found] == list(made.programs["decode"].launches)

    parts: dict[int, list[tuple[int, int]]] = {}
    for use in found:
        for read in use.reads:
            matrix = len(made.layout.weights[read.weight.index].shape) > 1  # norms are computed again
            if matrix and not read.looked_up:
                parts.setdefault(read.weight.index, []).append((read.weight.offset, read.bytes))
    for spans in parts.values():
        spans.sort()
        assert all(at + size <= after for (at, size), (after, _) in pairwise(spans)), "read twice"

    assert sum(use.weights for use in found) == least.weights
    moved = sum(use.bytes for use in found)
    assert least.weights + least.cache < moved <= MOST * (least.weights + least.cache)


def test_occupancy_by_hand():
    def of(registers: int, threads: int = 128, shared: int = 0, arch: int = 90, dynamic: int = 0) -> float:
        return occupancy(threads, Resources(registers, 0, 0, shared), arch, dynamic)

    assert of(32) == 1.0  # 16 blocks of 4 warps
    assert of(128) == 16 / 64  # 4096 registers a warp: 16 warps
    assert of(33) == 48 / 64  # given by 256: 1280 a warp, 51 of them, of which whole blocks' are 48
    assert of(32, threads=32) == 32 / 64  # no more than 32 blocks
    assert of(32, shared=48 << 10) == 16 / 64  # four blocks' shared memory
    assert of(32, dynamic=200 << 10) == 4 / 64
    assert of(32, dynamic=300 << 10) == 0
    assert of(32, arch=89) == 1.0  # 12 blocks of 4 warps are all 48
    assert all(limits.most == limits.shared - 1024 for limits in LIMITS.values())


def test_the_table_and_json_tell_the_same(monkeypatch):
    monkeypatch.setattr(commands, "resources", cache(commands.resources))  # compiles once
    options = (MOE, "--backend", "cuda", "--context", 64, "--bandwidth", 1000)
    found = json.loads(called(*options, "--json").stdout)
    assert found["problem"] is None
    total, kernels = found["total"], found["kernels"]
    assert total["bytes"] == sum(kernel["bytes"] for kernel in kernels)
    assert total["launches"] == sum(kernel["calls"] for kernel in kernels)
    assert total["seconds"] == pytest.approx(total["bytes"] / 1e12)
    assert all(kernel["registers"] > 0 and kernel["spilled"] == 0 < kernel["occupancy"] for kernel in kernels)
    page = (ROOT / "docs" / "cli.md").read_text().split("\n## show\n")[1].split("\n## ")[0]
    assert [key for key in (*found, *kernels[0], *total) if f"`{key}`" not in page] == []
    text = called(*options).stdout
    assert all(kernel["what"] in text for kernel in kernels)
    assert f"kernels move {total['ratio']:.3f} times as much" in text


def test_without_a_compiler_the_rest_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy._core", None)
    found = called(MOE, "--backend", "cuda", "--context", 64)
    assert "are not known: compiling CUDA kernels needs CuPy" in found.stderr
    assert "registers" not in found.stdout
    assert "times as much" in found.stdout


def test_the_source_is_printed_and_mistakes_are_told():
    text = called(MOE, "--backend", "cuda", "--source", "--context", 64).stdout
    assert text.startswith("// What all kernels share")
    assert text.count('extern "C" __global__') > 20
    assert "cuda has" in called(MOE, "--backend", "cpu", code=2).stderr
    assert "one of 80, 89, 90, not 70" in called(MOE, "--backend", "cuda", "--arch", 70, code=2).stderr
    assert "give --backend cuda" in called(MOE, "--source", code=2).stderr
