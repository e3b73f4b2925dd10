"""The files that come with the package, and how an architecture's text is read. Nothing here knows the language."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from .errors import SpecError


def shipped() -> dict[str, Path]:
    """The architectures that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.arch"))}


def example(architecture: str) -> Path | None:
    """The file with example sizes of a shipped architecture, where there is one."""
    path = Path(__file__).parent / "examples" / f"{architecture}.json"
    return path if path.exists() else None


def sizes() -> dict[str, Path]:
    """The files with the sizes of published models, by the model's name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "sizes").glob("*.json"))}


def read(path: str | Path) -> str:
    """The text of an `.arch` file. Raises `SpecError` when it cannot be read or is no text."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read the architecture file {path}: {error.strerror}") from None
    if data.startswith(b"GGUF"):
        raise SpecError(f"{path} is a model file; an architecture file is text and starts with `arch NAME`")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise SpecError(f"{path}:{line}: {byte} is not UTF-8 text; save the file as UTF-8") from None


@cache
def language() -> str:
    """A hash of all that makes a tree of a text: of another language, the same text may be another tree."""
    room = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*room.glob("*.py"), *room.glob("*.lark")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
