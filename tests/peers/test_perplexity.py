"""Perplexity beside llama.cpp's on the same windows of a text, in the same run (`make peers`: slow)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from briolette.engine.cli import app

pytestmark = pytest.mark.peers
ROOT = Path(__file__).resolve().parents[2]
CLOSE = 0.003
WINDOWS = 8


def texts() -> list[Path]:
    """WikiText-2's test split, where it lies beside the repository; else prose that is in it."""
    found = [folder / "shared" / "data" / "wikitext2-test.txt" for folder in (ROOT, ROOT.parent)]
    return [path for path in found if path.exists()] or sorted((ROOT / "docs").glob("*.md"))


def test_perplexity_with_an_f16_cache_is_that_of_llama_cpp(gemma3_path, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(path.read_text(encoding="utf-8") for path in texts()), encoding="utf-8")
    given = ["eval", "ppl", gemma3_path, "--text", text, "--ctx", 512, "--chunks", WINDOWS, "--kv", "f16", "--json"]
    given += ["--peer", "llama.cpp", "--peer-python", sys.executable, "--peer-kv", "f16"]
    outcome = CliRunner().invoke(app, list(map(str, given)))
    assert outcome.exit_code == 0, outcome.stderr
    ours, theirs = json.loads(outcome.stdout)["rows"]
    assert (ours["engine"], theirs["engine"]) == ("briolette", "llama.cpp")
    print(f"perplexity {ours['ppl']:.4f}, llama.cpp {theirs['ppl']:.4f}, ratio {ours['ppl'] / theirs['ppl']:.5f}")
    assert ours["ppl"] == pytest.approx(theirs["ppl"], rel=CLOSE)
