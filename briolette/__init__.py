"""Briolette: an LLM architecture is one readable text file; a compiler turns it into engines that run.

>>> import briolette
>>> model = briolette.load("gemma-3-270m.gguf")          # doctest: +SKIP
>>> print(*model.generate("The capital of France"), sep="")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from briolette.compiler.errors import BrioletteError
    from briolette.engine.model import Model, compile, load
    from briolette.engine.session import Chat

__all__ = ["BrioletteError", "Chat", "Model", "compile", "load"]
__version__ = "0.1.0"

# Imported when first asked for: a command that needs no numpy, such as `briolette --help`, is fast.
_HOMES = {
    "BrioletteError": "briolette.compiler.errors",
    "Chat": "briolette.engine.session",
    "Model": "briolette.engine.model",
    "compile": "briolette.engine.model",
    "load": "briolette.engine.model",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'briolette' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
