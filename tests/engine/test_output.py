"""Where results go when that is no file, or cannot be written; and names that are of nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from briolette.compiler.errors import BrioletteError
from briolette.engine.cli import app
from briolette.engine.commands.files import write_whole
from briolette.engine.writing import whole

MODEL = Path(__file__).resolve().parents[1] / "oracle" / "models" / "llama_plain.gguf"


def mistake(*args: object) -> str:
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, args)), prog_name="briolette")
    assert found.exit_code == 2, found.output
    return found.stderr


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with whole(pipe) as file:
        file.write(b"all of it")
    reader.join()
    assert got == [b"all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_what_to_do_fits_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    for path, advice in {
        tmp_path / "no" / "page": "make the folder",
        tmp_path / "file" / "page": "is no folder",
        tmp_path / ("x" * 300): "choose a shorter name",
    }.items():
        with pytest.raises(BrioletteError, match=advice):
            write_whole(path, "text")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("args", [["specs"], ["--version"], ["show", "--help"]])
def test_standard_output_that_is_full(args):
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "briolette", *args], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert found.returncode == 2
    assert found.stderr == "error: standard output cannot be written: No space left on device\n"


def test_standard_output_that_is_closed():
    command = f"exec {sys.executable} -m briolette specs >&-"
    found = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert found.returncode == 2
    assert found.stderr == "error: standard output cannot be written: it is closed\n"


def test_names_of_nothing_and_of_architectures():
    for command in (["plan"], ["inspect"], ["ablate", "--ids", "2,3"]):
        assert "the name of the model is empty" in mistake(*command, "")
        assert "give a GGUF file and --spec gemma4" in mistake(*command, "gemma4")
        assert "if an architecture is meant, `gemma4`" in mistake(*command, "Gemma4")
    assert "is empty" in mistake("show", "")
    assert "is empty" in mistake("diff", "gemma4", "")
    assert mistake("plan", "model.gguf") == "error: model.gguf: there is no such file; check the path\n"


def test_show_takes_a_stage_by_its_name():
    shown = [
        CliRunner().invoke(app, ["show", *args]).stdout
        for args in (
            ["llama@fused"],
            ["llama@optimised"],
            ["llama", "--stage", "optimised"],
            ["llama@fused", "--stage", "fused"],
        )
    ]
    assert len(set(shown)) == 1
    assert shown[0].startswith("module llama unrolled")
    assert "--stage another" in mistake("show", "llama@fused", "--stage", "bound")
    assert "leave one out" in mistake("show", "llama", "--stats", "--plan")
