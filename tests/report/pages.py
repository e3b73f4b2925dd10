"""Pages to test, written by the command, beside what the compiler itself says of the same model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from briolette.compiler.ir import Module
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.engine.cli import app
from briolette.engine.gguf import open_gguf
from briolette.spec import syntax

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "oracle" / "models"
# A comment that breaks a page whose writer forgot to escape it.
NASTY = "# if a < b & b > c: </script><img src=x onerror=\"document.title='broken'\"> 'quoted' \"twice\"\n"


@dataclass(frozen=True)
class Page:
    """A written page, and what the compiler itself says of the same model."""

    path: Path
    text: str
    data: dict[str, Any]
    traces: dict[str, Trace]

    @property
    def elaborated(self) -> Module:
        return self.traces["decode"].modules["elaborated"]


def briolette(*args: object, code: int = 0) -> str:
    """What a command prints; on stderr where it fails."""
    found = CliRunner(env={"COLUMNS": "100"}).invoke(app, list(map(str, args)), prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stdout if code == 0 else found.stderr


def data_of(text: str) -> dict[str, Any]:
    """The JSON in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def written(model: Path, folder: Path, *options: object, change: tuple[str, str] = ("", "")) -> Page:
    """The page of a model under a spec with a nasty comment in its first line, and perhaps a change."""
    header = open_gguf(model).header
    spec = folder / f"{header.architecture}.arch"
    spec.write_text(NASTY + syntax.shipped()[header.architecture].read_text().replace(*change))
    path = folder / "page.html"
    briolette("report", model, "-o", path, "--spec", spec, "--kv", "f16", *options)
    traces = {}
    for name, form in (("decode", Form(tokens=1, cache="f16")), ("prefill", Form(cache="f16"))):
        traces[name] = Trace()
        optimise(front(syntax.load(spec), header, traces[name]), form, traces[name])
    text = path.read_text()
    return Page(path, text, data_of(text), traces)
