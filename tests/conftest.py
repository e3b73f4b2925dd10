"""Fixtures that several rooms share: the model files that tests may use where they are there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import models  # noqa: E402

# A busy machine is no failure. CI draws the same examples every time, so that a change is judged by
# itself; on a desk they are new in every run, and what they find becomes a test.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew; read the diff")
    parser.addoption("--device", choices=("emu", "cupy"), default="emu", help="what CUDA tests run on")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden"):
        os.environ["UPDATE_GOLDENS"] = "1"  # what the tables in tests/spec go by, too


@pytest.fixture(scope="session", autouse=True)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of compiled objects that all tests share: kept between runs, apart from the user's own.

    Objects are named by all they depend on, so that a change of the compiler finds none of them.
    """
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("briolette") if cache else tmp_path_factory.mktemp("briolette"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRIOLETTE_CACHE", str(folder))
        yield folder


def or_skip(find: Callable[[], Path]) -> Path:
    """A model file, as examples/models.py finds it; skips where its package is not installed."""
    try:
        return find()
    except SystemExit as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M (253 MB)."""
    return or_skip(models.gemma3)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2 135M Instruct, Q4_1 (98 MB)."""
    return or_skip(models.smollm2)


@pytest.fixture(scope="session")
def gemma4_vocab_path() -> Path:
    """llama.cpp's ggml-vocab-gemma-4.gguf: header and vocabulary of Gemma 4 26B, no tensors (16 MB)."""
    for folder in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data"):
        if (file := folder / "ggml-vocab-gemma-4.gguf").exists():
            return file
    pytest.skip("ggml-vocab-gemma-4.gguf is not in shared/data beside the repository")
