"""The command line as a person and a program meet it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import briolette as package
from briolette.compiler.pipeline import STAGES
from briolette.engine.cli import app
from briolette.engine.commands import generate

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models" / "gemma4_e2b.gguf"
COMMANDS = (
    *("run", "chat", "inspect", "plan", "bench", "eval", "show", "diff", "trace", "ablate", "report", "fmt", "specs"),
)


def briolette(*args: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "briolette", *map(str, args)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "100"}
    )


def here(*args: object, code: int = 0) -> str:
    """What a command prints when it runs in this process, which is faster; on stderr where it fails."""
    found = CliRunner(env={"COLUMNS": "100"}).invoke(app, list(map(str, args)), prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stdout if code == 0 else found.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    assert f"briolette {command}" in here(command, "--help").split("Example")[-1]


def test_help_lists_the_commands_and_is_all_that_is_imported():
    assert all(command in here("--help") for command in COMMANDS)
    assert here("--version").split() == ["briolette", package.__version__]
    code = "import sys, briolette.engine.cli; print([m for m in ('numpy', 'lark', 'llvmlite') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_page_of_the_commands_names_them_all_and_their_stages():
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    assert all(f"## {command}" in page or f"`{command}`" in page for command in COMMANDS)
    stages = page.split("The stages, in their order, are")[1].split(";")[0]
    assert re.findall(r"`(\w+)`", stages) == list(STAGES)
    assert all(stage in " ".join(here("show", "--help").split()) for stage in STAGES)


def test_specs_lists_the_files():
    assert "gemma4.arch" in here("specs")
    assert all(Path(row["path"]).exists() and row["about"] for row in json.loads(here("specs", "--json")))


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
    assert (answer["usage"]["generated"], answer["usage"]["finish"]) == (4, "length")
    assert set(answer["seconds"]) == {"open", "compile", "first_token"}


def test_inspect_tells_kinds_and_memory():
    found = json.loads(here("inspect", ORACLE, "--json", "--context", 256, "--chunk", 16))
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert set(kinds) == {"local", "global"}
    assert kinds["local"]["kv_positions"] < 256 == kinds["global"]["kv_positions"]
    assert found["memory"]["kv"] == sum(row["kv_bytes"] for row in kinds.values())
    assert found["parameters"] == sum(row["weights"] for row in found["formats"])
    text = here("inspect", ORACLE, "--tensors", "--keys")
    assert "blk.0.attn_q.weight" in text
    assert "80 in all" in text  # the vocabulary, shortened


def test_inspect_tells_what_it_can_of_a_model_that_cannot_be_compiled(gemma4_vocab_path):
    found = json.loads(here("inspect", gemma4_vocab_path, "--json"))
    assert found["tokenizer"]["tokens"] == 262144
    assert "token_embd" in found["problem"]


@pytest.mark.parametrize("stage", ["elaborated", "unrolled", "fused"])
def test_show_prints_the_ir(stage):
    assert here("show", ORACLE, "--stage", stage).startswith("module gemma4")


def test_show_prints_parts_and_numbers():
    part = here("show", ORACLE, "--block", "attention.local")
    assert part.startswith("block attention.local(")
    assert part.count("block ") == 1
    assert "tensor blk.0.attn_q.weight" in here("show", ORACLE, "--full")
    stages = json.loads(here("show", ORACLE, "--stats", "--json"))
    assert any(stage["hits"].get("fuse-linear") for stage in stages)
    assert "arena" in here("show", ORACLE, "--plan", "--form", "prefill")


def test_fmt_check_and_write(tmp_path):
    ours = Path(__file__).resolve().parents[2] / "spec" / "llama.arch"
    messy = tmp_path / "messy.arch"
    messy.write_text(ours.read_text().replace("param eps", "param   eps"))
    assert messy.read_text() != ours.read_text()
    messy.chmod(0o640)
    here("fmt", "--check", messy, code=1)
    assert "-param   eps" in here("fmt", "--diff", messy)
    here("fmt", messy)
    assert messy.read_text() == ours.read_text()
    assert messy.stat().st_mode & 0o777 == 0o640
    here("fmt", "--check", messy)
    assert [p.name for p in tmp_path.iterdir()] == ["messy.arch"]  # nothing is left behind


def test_fmt_leaves_a_broken_file_as_it_is(tmp_path):
    wrong = tmp_path / "wrong.arch"
    wrong.write_text("arch x\nparam = 1\n")
    assert "wrong.arch:2:7" in here("fmt", wrong, code=2)
    assert wrong.read_text() == "arch x\nparam = 1\n"


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
        "cache to inspect": (["inspect", ORACLE, "--kv", "q9"], "f32, f16, bf16"),
        "typo to inspect": (["inspect", ORACLE, "--spec", typo], "did you mean `rms`"),
        "spec of another to inspect": (["inspect", ORACLE, "--spec", "llama"], "this spec is for llama"),
        "folder as spec": (["run", ORACLE, "x", "--spec", tmp_path], "cannot read the architecture file"),
        "cut to inspect": (["inspect", cut], "ends inside"),
        "folder to show": (["show", tmp_path], "folder"),
        "threads": (["run", ORACLE, "x", "--threads", 99999], "--threads"),
        "context": (["run", ORACLE, "x", "--context", 10**12], "--context"),
        "top p": (["run", ORACLE, "x", "--top-p", 0], "top_p is 0.0"),
        "stage": (["show", ORACLE, "--stage", "nope"], "elaborated"),
        "backend": (["run", ORACLE, "x", "--backend", "gpu"], "cpu"),
        "form": (["show", ORACLE, "--form", "nope"], "decode, prefill, all"),
        "block": (["show", ORACLE, "--block", "nope"], "attention.local"),
        "typo to show": (["show", typo], "did you mean `rms`"),
        "spec of another": (["run", ORACLE, "x", "--spec", "llama"], "this spec is for llama"),
        "two prompts": (["run", ORACLE, "x", "--file", text], "two prompts"),
        "no prompt file": (["run", ORACLE, "--file", tmp_path / "none.txt"], "none.txt"),
        "too long": (["run", ORACLE, "abc " * 50, "--context", 8], "larger context"),
        "temperature": (["run", ORACLE, "x", "--temperature", -1], "--temperature"),
        "stop": (["run", ORACLE, "x", "--stop", ""], "stop string is empty"),
        "option": (["run", ORACLE, "x", "--nope"], "--nope"),
        "command": (["nope"], "nope"),
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
    "cache to inspect",
    "typo to inspect",
    "spec of another to inspect",
    "folder as spec",
    "cut to inspect",
    "folder to show",
    "threads",
    "context",
    "top p",
    "stage",
    "backend",
    "form",
    "block",
    "typo to show",
    "spec of another",
    "two prompts",
    "no prompt file",
    "too long",
    "temperature",
    "stop",
    "option",
    "command",
    "no template",
)


def test_every_mistake_is_tried(tmp_path):
    assert set(broken(tmp_path)) == set(MISTAKES)


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_clear_message(case, tmp_path):
    args, words = broken(tmp_path)[case]
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, args)))
    assert found.exit_code == 2
    assert words in " ".join(found.stderr.split())
    assert found.stdout == ""
    assert "Traceback" not in found.stderr


def test_too_little_memory_is_told_and_no_traceback(monkeypatch):
    def load(*_, **__):
        raise MemoryError("Unable to allocate 47.7 GiB")

    monkeypatch.setattr(generate, "load", load)
    assert "47.7 GiB); a smaller --ctx" in here("run", ORACLE, "x", code=2)


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    found = briolette("run", ORACLE, "x", "--spec", broken(tmp_path)["typo"][0][-1])
    assert (found.returncode, found.stdout) == (2, "")
    assert "Traceback" not in found.stderr
    assert "^^^" in found.stderr
    assert "prompt is empty" in briolette("run", ORACLE, stdin="").stderr


def test_chat_answers_and_computes_only_what_is_new(smollm2_path):
    turns = ("--message", "What is the capital of France?", "--message", "And of Spain?")
    found = briolette("chat", smollm2_path, *turns, "--weights", "mapped", "--temperature", 0, "-n", 24, "--json")
    assert found.returncode == 0, found.stderr
    first, second = json.loads(found.stdout)["turns"]
    assert "Paris" in first["reply"]
    assert "Madrid" in second["reply"]
    assert first["usage"]["reused"] == 0
    held = first["usage"]["prompt"] + first["usage"]["generated"] - 1  # the last token was never fed back
    assert second["usage"]["reused"] >= held


def test_chat_reads_a_pipe_line_by_line(smollm2_path):
    found = briolette("chat", smollm2_path, "--temperature", 0, "-n", 2, stdin="Hello\n\nWhat is two plus two?\n")
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 2
    assert found.stderr == ""


def test_a_closed_pipe_ends_quietly():
    command = [sys.executable, "-m", "briolette", "show", str(ORACLE), "--stage", "unrolled", "--full"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def heed_interrupts():
    """For a child: where tests run in the background of a shell, interrupts are ignored, and it would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_where_nothing_can_be_raised_comes_again():
    """As from a weak reference's callback, while nodes of a compiled program are collected."""
    code = (
        "import os, signal, sys, time\n"
        "from briolette.engine.cli import app\n"
        "class Freed:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.1)\n"
        "@app.command()\n"
        "def lose():\n"
        "    freed = Freed()\n"
        "    del freed\n"
        "    time.sleep(20)\n"
        "    print('lost')\n"
        "app(['lose'])\n"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=heed_interrupts)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_interrupt_ends_quietly(gemma3_path):
    command = [sys.executable, "-m", "briolette", "run", str(gemma3_path), "Once upon a time", "-n", "3000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=heed_interrupts) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
