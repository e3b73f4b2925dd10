"""The rules of the house: which room may know which, and where an architecture may be named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "spec": set(),
    "compiler": {"spec"},
    "backends": {"compiler"},
    "engine": {"spec", "compiler", "backends"},
}
SOURCES = [p for room in MAY_IMPORT for p in sorted((ROOT / room).rglob("*.py"))]
# Names of tokenizers and pre-tokenizers are the GGUF format's own.
NAMED_BY_THE_FORMAT = {"engine/vocab.py", "engine/tokenizer.py", "engine/pretokenize.py"}
MOST_LINES = 470  # near 400 is the aim
ARCHITECTURE = re.compile(r"gemma|qwen|\bllama\b(?!\.cpp)", re.IGNORECASE)


def imports(path: Path, text: str | None = None) -> set[str]:
    """The rooms a file imports, absolutely or relatively."""
    room = path.relative_to(ROOT).parts[0]
    depth = len(path.relative_to(ROOT).parts) - 1
    found = set()
    for item in ast.walk(ast.parse(path.read_text() if text is None else text)):
        names = []
        if isinstance(item, ast.Import):
            names = [alias.name for alias in item.names]
        elif isinstance(item, ast.ImportFrom) and item.level == 0:
            names = [f"{item.module}.{alias.name}" for alias in item.names]
        elif isinstance(item, ast.ImportFrom) and item.level > depth:
            inside = f"briolette.{item.module}" if item.module else "briolette"
            names = [f"{inside}.{alias.name}" for alias in item.names]
        found |= {n.split(".")[1] for n in names if n.startswith("briolette.") and n.count(".")}
    return found - {room}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    assert imports(path) <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_architecture_is_named_in_code(path):
    """Comments and help may give examples; code must not know one architecture from another."""
    if str(path.relative_to(ROOT)) in NAMED_BY_THE_FORMAT:
        return
    tree = ast.parse(path.read_text())
    docs = {
        id(item.body[0].value)
        for item in ast.walk(tree)
        if isinstance(item, ast.Module | ast.ClassDef | ast.FunctionDef)
        and item.body
        and isinstance(item.body[0], ast.Expr)
    }
    for item in ast.walk(tree):
        name = getattr(item, "id", None) or getattr(item, "attr", None) or getattr(item, "name", None)
        assert not (isinstance(name, str) and ARCHITECTURE.search(name)), f"line {item.lineno}: {name}"
        if isinstance(item, ast.Constant) and isinstance(item.value, str) and id(item) not in docs:
            # An example in a command's help is a text of several words.
            assert " " in item.value or not ARCHITECTURE.search(item.value), f"line {item.lineno}: {item.value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    ("room", "text", "found"),
    [
        ("backends/x.py", "import briolette.spec.syntax", {"spec"}),
        ("backends/x.py", "from briolette.spec import syntax", {"spec"}),
        ("backends/x.py", "from briolette import spec", {"spec"}),
        ("backends/x.py", "from .. import spec", {"spec"}),
        ("backends/cpu/x.py", "from ...spec.syntax import load", {"spec"}),
        ("backends/cpu/x.py", "def f():\n    from briolette.engine import model", {"engine"}),
        ("backends/cpu/x.py", "from .. import formats\nfrom ..base import Weights\nimport numpy.random", set()),
    ],
)
def test_the_scan_sees_every_form_of_import(room, text, found):
    assert imports(ROOT / room, text) == found
