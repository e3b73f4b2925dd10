"""The device that CUDA tests run on: `--device=emu` (the emulator, the default) or `--device=cupy` (a GPU).

CUDA_TESTS=require makes failures of what would be skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers that lie beside the tests of this room

from briolette.backends.cuda import engine
from briolette.backends.cuda.device import Device, open_device


@pytest.fixture(scope="session")
def open_tested(request: pytest.FixtureRequest) -> Callable[[], Device]:
    """Opens the device that is tested."""
    if request.config.getoption("--device") == "cupy":
        return open_device
    from emulated import EmulatedDevice

    return EmulatedDevice


@pytest.fixture
def device(open_tested: Callable[[], Device]) -> Device:
    return open_tested()


@pytest.fixture
def cuda(open_tested: Callable[[], Device], monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend's name, with the tested device as the one that it opens."""
    monkeypatch.setattr(engine, "open_device", open_tested)
    return engine.name


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    made = yield
    report = made.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CUDA_TESTS") == "require":
        report.outcome = "failed"
