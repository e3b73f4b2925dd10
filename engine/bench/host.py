"""What is measured on: the machine, and the versions of what ran."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from briolette.engine.model import cores


def machine() -> str:
    """The processor's name and its cores, for people."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    count = cores()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {count} core{'s' * (count != 1)}"


def versions() -> dict[str, str]:
    """Of this package, Python, and what makes the machine code."""
    return {name: version(name) for name in ("briolette", "numpy", "llvmlite")} | {"python": platform.python_version()}
