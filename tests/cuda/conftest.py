"""The device that CUDA tests run on: `--device=emu` (the emulator, the default) or `--device=cupy` (a GPU).

CUDA_TESTS=require makes failures of what would be skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "backends")]  # helpers that lie beside tests, here and of other backends

from briolette.backends.cuda import engine  # noqa: E402
from briolette.backends.cuda.device import Device  # noqa: E402

import devices  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    devices.chosen = config.getoption("--device")


@pytest.fixture(scope="session")
def open_tested() -> Callable[[], Device]:
    """Opens the device that is tested."""
    return devices.opened


@pytest.fixture
def device() -> Device:
    return devices.opened()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend's name, with the tested device as the one that it opens."""
    monkeypatch.setattr(engine, "open_device", devices.opened)
    return engine.name


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    made = yield
    report = made.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CUDA_TESTS") == "require":
        report.outcome = "failed"
