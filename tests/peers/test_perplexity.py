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
MODELS = ROOT / "tests" / "oracle" / "models"
CLOSE = 0.003
# llama.cpp rounds activations to 8 bits where weights are quantised, and we to 16: 0.5 % in these windows.
CLOSE_ROUNDED = 0.008


def texts() -> list[Path]:
    """WikiText-2's test split, where it lies beside the repository; else prose that is in it."""
    found = [folder / "shared" / "data" / "wikitext2-test.txt" for folder in (ROOT, ROOT.parent)]
    return [path for path in found if path.exists()] or sorted((ROOT / "docs").glob("*.md"))


def perplexities(model: Path, text: Path, size: int, windows: int) -> tuple[float, float]:
    """Ours and llama.cpp's, both with an f16 cache."""
    given = ["eval", "ppl", model, "--text", text, "--ctx", size, "--chunks", windows, "--kv", "f16", "--json"]
    given += ["--peer", "llama.cpp", "--peer-python", sys.executable, "--peer-kv", "f16"]
    outcome = CliRunner().invoke(app, list(map(str, given)))
    assert outcome.exit_code == 0, outcome.stderr
    ours, theirs = json.loads(outcome.stdout)["rows"]
    assert (ours["engine"], theirs["engine"]) == ("briolette", "llama.cpp")
    print(f"perplexity {ours['ppl']:.4f}, llama.cpp {theirs['ppl']:.4f}, ratio {ours['ppl'] / theirs['ppl']:.5f}")
    return ours["ppl"], theirs["ppl"]


@pytest.mark.parametrize("name", ["gemma2_caps", "llama_scaled"])
def test_perplexity_with_weights_in_f32_is_that_of_llama_cpp(name, tmp_path):
    """Windows, BOS, and which predictions count: all but the rounding."""
    text = tmp_path / "text.txt"
    text.write_text("the rain in spain is in the stars, and a siren sings to the sea at noon. " * 12)
    ours, theirs = perplexities(MODELS / f"{name}.gguf", text, 64, 6)
    assert ours == pytest.approx(theirs, rel=CLOSE)


def test_perplexity_of_a_quantised_model_is_near_llama_cpps(gemma3_path, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(path.read_text(encoding="utf-8") for path in texts()), encoding="utf-8")
    ours, theirs = perplexities(gemma3_path, text, 512, 16)
    assert ours == pytest.approx(theirs, rel=CLOSE_ROUNDED)
