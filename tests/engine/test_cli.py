"""The command line as a person and a program meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models" / "gemma4_e2b.gguf"
COMMANDS = ("run", "chat", "inspect", "show", "fmt", "specs")


def briolette(*args: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "briolette", *map(str, args)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "100"}
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    found = briolette(command, "--help")
    assert found.returncode == 0
    assert f"briolette {command}" in found.stdout.split("Options")[-1]


def test_run_streams_the_text_to_stdout_and_speeds_to_stderr(gemma3_path):
    found = briolette("run", gemma3_path, "The capital of France is", "-n", 8, "--stats")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip().startswith("the capital of")
    assert "tok/s" in found.stderr
    assert "tok/s" not in found.stdout


def test_run_reads_stdin_and_answers_in_json(gemma3_path):
    found = briolette("run", gemma3_path, "-n", 4, "--json", stdin="One, two, three,")
    answer = json.loads(found.stdout)
    assert answer["text"]


@pytest.mark.parametrize("args", [("--json",), ("--tensors", "--keys")])
def test_inspect(args):
    found = briolette("inspect", ORACLE, *args)
    assert found.returncode == 0, found.stderr
    if args == ("--json",):
        json.loads(found.stdout)
    else:
        assert "blk.0.attn_q.weight" in found.stdout


@pytest.mark.parametrize("stage", ["elaborated", "unrolled", "fused"])
def test_show_prints_the_ir(stage):
    found = briolette("show", ORACLE, "--stage", stage)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("module gemma4")


def test_fmt_check_and_write(tmp_path):
    ours = Path(__file__).resolve().parents[2] / "spec" / "llama.arch"
    messy = tmp_path / "messy.arch"
    messy.write_text(ours.read_text().replace("param eps", "param   eps"))
    assert messy.read_text() != ours.read_text()
    assert briolette("fmt", "--check", messy).returncode == 1
    assert briolette("fmt", messy).returncode == 0
    assert messy.read_text() == ours.read_text()
    assert briolette("fmt", "--check", messy).returncode == 0


def broken(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    """Mistakes a careless person makes, and words of the message they get."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(ORACLE.read_bytes()[:5000])
    text = tmp_path / "text.gguf"
    text.write_text("not a model at all")
    typo = tmp_path / "typo.arch"
    shipped = (Path(__file__).resolve().parents[2] / "spec" / "gemma4.arch").read_text()
    typo.write_text(shipped.replace("rms(attn_norm)", "rmz(attn_norm)"))
    unclosed = tmp_path / "unclosed.arch"
    unclosed.write_text(shipped.rstrip().removesuffix("}"))
    return {
        "missing": (["run", tmp_path / "none.gguf", "x"], "no such file"),
        "folder": (["run", tmp_path, "x"], "folder"),
        "no gguf": (["run", text, "x"], "GGUF"),
        "cut": (["run", cut, "x"], "ends inside"),
        "typo": (["run", ORACLE, "x", "--spec", typo], "did you mean `rms`"),
        "unclosed": (["run", ORACLE, "x", "--spec", unclosed], "missing `}`"),
        "no spec": (["run", ORACLE, "x", "--spec", "none.arch"], "none.arch"),
        "cache": (["run", ORACLE, "x", "--kv", "q9"], "f32, f16, bf16"),
        "stage": (["show", ORACLE, "--stage", "nope"], "elaborated"),
        "backend": (["run", ORACLE, "x", "--backend", "gpu"], "cpu"),
        "no template": (["chat", ORACLE, "--message", "x"], "chat template"),
    }


MISTAKES = (
    "missing",
    "folder",
    "no gguf",
    "cut",
    "typo",
    "unclosed",
    "no spec",
    "cache",
    "stage",
    "backend",
    "no template",
)


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_clear_message(case, tmp_path):
    args, words = broken(tmp_path)[case]
    found = briolette(*args)
    assert found.returncode == 2
    assert words in " ".join(found.stderr.split())
    assert found.stdout == ""
    assert "Traceback" not in found.stderr


def test_chat_answers_and_computes_only_what_is_new(smollm2_path):
    turns = ("--message", "What is the capital of France?", "--message", "And of Spain?")
    found = briolette("chat", smollm2_path, *turns, "--temperature", 0, "-n", 24, "--json")
    assert found.returncode == 0, found.stderr
    replies = json.loads(found.stdout)
    text = json.dumps(replies)
    assert "Paris" in text
    assert "reused" in text


def test_interrupt_ends_quietly(gemma3_path):
    command = [sys.executable, "-m", "briolette", "run", str(gemma3_path), "Once upon a time", "-n", "3000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
