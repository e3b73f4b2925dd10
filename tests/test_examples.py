"""Every example runs and says what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WANTED = {
    "run_text.py": "The capital of France is",
    "change_a_line.py": "rms(attn_q_norm) -> rms()",
    "show_ir.py": "fuse-linear",
    "chat_turns.py": "Paris",
}


def test_every_example_is_tested():
    assert {p.name for p in EXAMPLES.glob("*.py")} - {"models.py"} == set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_example(name, gemma3_path, smollm2_path):
    model = smollm2_path if name == "chat_turns.py" else gemma3_path
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(model)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert WANTED[name] in run.stdout


def test_the_readme_shows_the_spec_as_it_is():
    root = EXAMPLES.parent
    assert f"```arch\n{(root / 'spec' / 'gemma4.arch').read_text()}```" in (root / "README.md").read_text()
