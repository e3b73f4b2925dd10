"""Pages to test, and a browser to open them in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from browser import Browser, chromium
from pages import MODELS, Page, written


@pytest.fixture(scope="session", params=["gemma4_e2b", "gemma4_moe", "llama_plain"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Layers that share caches and have per-layer embeddings; experts; layers all of one kind."""
    options = ("--context", 256, "--bandwidth", 40, "--peak", 100)
    return written(MODELS / f"{request.param}.gguf", tmp_path_factory.mktemp(request.param), *options)


@pytest.fixture(scope="session")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A model whose last layers read the caches of earlier ones."""
    return written(MODELS / "gemma4_e2b.gguf", tmp_path_factory.mktemp("sharing"), "--bandwidth", 40, "--peak", 100)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome is installed, in which the pages would be opened")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()
