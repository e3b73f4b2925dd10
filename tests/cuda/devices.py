"""The device that tests run kernels on, chosen by `--device` (conftest)."""

from __future__ import annotations

from typing import Any

from briolette.backends.cuda.device import Device, open_device

chosen = "emu"


def opened(*how: Any, **options: Any) -> Device:
    """The chosen device; `how` and `options` are those of `EmulatedDevice`, which a GPU knows nothing of."""
    if chosen == "cupy":
        return open_device()
    from emulated import EmulatedDevice

    return EmulatedDevice(*how, **options)
