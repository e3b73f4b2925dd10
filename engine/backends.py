"""Backends by name, imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from briolette.backends.base import Backend, Room
from briolette.compiler.errors import BrioletteError

BACKENDS = {
    "cpu": "briolette.backends.cpu.engine",
    "cuda": "briolette.backends.cuda.engine",
    "reference": "briolette.backends.reference",
}


def backend_named(name: str) -> Backend:
    """The backend of a name. Raises BrioletteError where there is none."""
    if name not in BACKENDS:
        raise BrioletteError(f"there is no backend `{name}`; there are {', '.join(BACKENDS)}")
    return cast(Backend, import_module(BACKENDS[name]))


def room_of(name: str) -> Callable[[], Room] | None:
    """What tells the free memory of the device that a backend has; None where it works in the host's."""
    found: Callable[[], Room] | None = getattr(backend_named(name), "room", None)
    return found
