"""A fast prefill is the default where it was measured to cost little, and there only."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import briolette
from briolette.backends.cpu.engine import default_weights
from briolette.engine import gate
from briolette.engine.cli import app
from briolette.engine.gguf import open_gguf
from briolette.engine.source import source_of
from briolette.spec import files

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
integers = pytest.mark.skipif(default_weights() == "mapped", reason="this processor does not multiply bytes")
LINE = "the rain in spain is in the stars, and a siren sings to the sea at noon. "


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("BRIOLETTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


def measured(path: Path, tmp_path: Path, code: int = 0, *more: object) -> str:
    text = tmp_path / "text.txt"
    text.write_text(LINE * 4)
    given = ("eval", "prefill", path, "--text", text, "--ctx", 48, "--chunks", 2, "--threads", 1, *more)
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, given)), prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stderr if code else found.stdout


def default(path: Path, **options: object) -> str:
    model = briolette.load(path, context=64, threads=1, **options)
    model.close()
    return model.options.prefill


@integers
def test_what_costs_little_is_the_default(folder, tmp_path, monkeypatch):
    path = Path(shutil.copy(MODELS / "gemma4_e2b.gguf", tmp_path / "model.gguf"))
    monkeypatch.setattr(gate, "MOST", 1.0)
    assert default(path) == "exact"
    told = json.loads(measured(path, tmp_path, 0, "--json"))
    assert (told["scored"], told["default"]) == (46, "fast")
    assert default(path) == "fast"
    assert default(path, prefill="exact") == "exact"
    assert default(path, backend="reference") == "exact"
    # Of that content alone, and by that architecture.
    assert default(MODELS / "gemma4_plain.gguf") == "exact"
    other = tmp_path / "other.arch"
    other.write_text(files.read(files.shipped()["gemma4"]) + "\n# another text\n")
    assert default(path, spec=other) == "exact"
    file = open_gguf(path)
    for name in ("blk.0.attn_q.weight", "blk.2.ffn_down.weight"):  # a layer that was tuned
        content, before = bytearray(path.read_bytes()), file.tensor_bytes(name)
        where = content.index(before.tobytes())
        content[where : where + len(before)] = (before ^ 1).tobytes()
        tuned = tmp_path / "tuned.gguf"
        tuned.write_bytes(content)
        assert default(tuned) == "exact", name


@pytest.mark.parametrize(("mean", "way"), [(0.0, "fast"), (0.004, "fast"), (0.00401, "exact"), (math.nan, "exact")])
def test_the_bound(mean, way, folder):
    file = open_gguf(MODELS / "gemma4_e2b.gguf")
    source = source_of(None, file.header)
    assert gate.prefill_of(file, source) == "exact"
    assert gate.remember(file, source, mean)
    assert gate.prefill_of(file, source) == way


def test_no_tensor_is_read_where_nothing_was_measured(folder, monkeypatch):
    """Every start asks; pages of all tensors are not to be fetched for it."""
    file = open_gguf(MODELS / "gemma4_e2b.gguf")
    source = source_of(None, file.header)
    monkeypatch.setattr(type(file), "tensor_bytes", lambda self, name: pytest.fail(f"{name} was read"))
    assert gate.prefill_of(file, source) == "exact"


def test_models_that_differ_in_content_alone_are_remembered_apart(folder, monkeypatch):
    file = open_gguf(MODELS / "gemma4_e2b.gguf")
    source, read = source_of(None, file.header), type(file).tensor_bytes
    assert gate.remember(file, source, 0.0)
    monkeypatch.setattr(type(file), "tensor_bytes", lambda self, name: read(self, name) ^ 1)
    assert gate.prefill_of(file, source) == "exact"
    assert gate.remember(file, source, 0.5)
    assert gate.prefill_of(file, source) == "exact"
    monkeypatch.setattr(type(file), "tensor_bytes", read)
    assert gate.prefill_of(file, source) == "fast"


@integers
def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    monkeypatch.setenv("BRIOLETTE_CACHE", str(blocked))
    assert json.loads(measured(MODELS / "gemma4_e2b.gguf", tmp_path, 0, "--json"))["default"] == "exact"
