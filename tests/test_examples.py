"""Every example runs and says what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
WANTED = {
    "run_text.py": "The capital of France is",
    "change_a_line.py": "rms(attn_q_norm) -> rms()",
    "show_ir.py": "fuse-linear",
    "chat_turns.py": "Paris",
}
OTHERS = {"cache_error.py", "decode_kld.py"}
WITHOUT_A_MODEL = {"turboquant_table.py": "   4      0.009    0.00931"}


def test_every_example_is_tested():
    assert {p.name for p in EXAMPLES.glob("*.py")} - {"models.py"} == {*WANTED, *WITHOUT_A_MODEL, *OTHERS}


@pytest.mark.parametrize("name", WANTED)
def test_example(name, gemma3_path, smollm2_path):
    model = smollm2_path if name == "chat_turns.py" else gemma3_path
    assert WANTED[name] in output(name, str(model))


def test_rotated_caches_of_a_real_model_are_like_random_directions(gemma3_path):
    lines = [line.split() for line in output("cache_error.py", str(gemma3_path)).splitlines() if line.startswith("tq")]
    assert [line[0] for line in lines] == ["tq2", "tq3", "tq4", "tq5", "tq6", "tq8"]
    for _, _, *figures in lines:
        k, worst_k, k_plain, _, v, worst_v, v_plain, _ = (float(figure.strip("()")) for figure in figures)
        assert 0.9 < k < 1.02
        assert 0.95 < v < 1.02
        assert worst_k < 1.2
        assert worst_v < 1.05
        assert k_plain > 2.5  # so it is the rotation that does it
        assert v_plain > 1.5


def test_fine_codes_are_better_than_coarse_ones(gemma3_path):
    """Token by token; the text is the licence's beginning."""
    arguments = (str(ROOT / "LICENSE"), "all=tq8", "all=tq3;sink=0;recent=0", "--ctx", "48", "--windows", "2")
    _, *rows = output("decode_kld.py", str(gemma3_path), *arguments).splitlines()
    fine, coarse = (float(row.split()[1]) for row in rows)
    assert 0 < fine < 0.01 < coarse


@pytest.mark.parametrize("name", WITHOUT_A_MODEL)
def test_example_without_a_model(name):
    assert WITHOUT_A_MODEL[name] in output(name)


def output(name: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_readme_shows_the_spec_as_it_is():
    run = subprocess.run([sys.executable, str(ROOT / "tests" / "readme.py")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"```arch\n{(ROOT / 'spec' / 'gemma4.arch').read_text()}```" in (ROOT / "README.md").read_text()


def test_the_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
