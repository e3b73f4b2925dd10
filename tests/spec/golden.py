"""Tables of what a person is told, kept as text files so that a change of wording is reviewed as a diff.

UPDATE_GOLDENS=1 writes the files anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

HERE = Path(__file__).parent


def check(file: str, name: str, found: str, names: list[str]) -> None:
    """Compares one entry of a table; `names` are all of them, in order."""
    path = HERE / file
    table = _read(path)
    if os.environ.get("UPDATE_GOLDENS"):
        table[name] = found
        kept = [f"## {entry}\n{table[entry]}\n" for entry in names if entry in table]
        path.write_text("\n".join(kept), encoding="utf-8")
        return
    assert name in table, f"{file} has no entry {name!r}: run with UPDATE_GOLDENS=1 and read what it says"
    assert found == table[name]


def names(file: str) -> set[str]:
    return set(_read(HERE / file))


def _read(path: Path) -> dict[str, str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)[1:]
    return {name: body.strip("\n") for name, body in zip(parts[::2], parts[1::2], strict=True)}
