"""Text files that commands read."""

from __future__ import annotations

import sys
from pathlib import Path

from briolette.compiler.errors import BrioletteError


def text_of(path: str) -> str:
    """A file's text; - is standard input. Raises BrioletteError where it cannot be read, or is no text."""
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise BrioletteError(f"cannot read the text file {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise BrioletteError(f"the text file {path} is not UTF-8 text; save it as UTF-8") from None
