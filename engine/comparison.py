"""Two programs compared: everything that `diff` prints, as text, JSON or a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from briolette.backends.formats import element_bytes
from briolette.compiler.cost import Costs, kv_token_bytes
from briolette.compiler.diffing.hunks import Hunk, Section, sections
from briolette.compiler.diffing.script import difference
from briolette.compiler.diffing.tables import Row, TensorRow, kind_rows, param_rows, tensor_rows
from briolette.compiler.ir import Module
from briolette.compiler.text import layer_ranges
from briolette.compiler.unfuse import kernels, unfused
from briolette.spec import syntax
from briolette.spec.errors import Span

from .subjects import Subject

CONTEXT = 4096  # positions that a token attends to, where costs are told


@dataclass(frozen=True)
class Comparison:
    """`same` tells whether there is any difference; the rest says which, in the order a person wants to read it."""

    names: tuple[str, str]
    about: tuple[str, str]
    form: str
    one_spec: bool  # two versions of one architecture, or one twice
    same: bool
    params: list[Row]
    kinds: list[Row]
    sections: tuple[Section, ...]
    tensors: list[TensorRow]
    kernels: list[tuple[str, float | None, float | None]]
    costs: list[tuple[str, float | None, float | None]]


def compare(a: Subject, b: Subject) -> Comparison:
    """What differs between two programs. Where one is in block form and one is not, layers of both are inline."""
    ours, theirs = a.module, b.module
    if ours.form != theirs.form:
        ours, theirs = a.unrolled(), b.unrolled()
    same = difference(ours, theirs).same
    found = _sections(unfused(ours, *a.before), unfused(theirs, *b.before))
    return Comparison(
        (a.name, b.name),
        (a.about, b.about),
        theirs.form,
        ours.name == theirs.name,
        same,
        param_rows(ours, theirs),
        kind_rows(ours, theirs),
        found,
        tensor_rows(ours, theirs),
        _beside(kernels(ours), kernels(theirs)),
        _beside(_costs(ours), _costs(theirs)),
    )


def _sections(a: Module, b: Module) -> tuple[Section, ...]:
    """What differs but for how ops are grouped into kernels."""
    return sections(difference(a, b), a, b)


def _beside(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> list[tuple[str, float | None, float | None]]:
    return [(name, before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))]


def _costs(module: Module) -> dict[str, float | None]:
    """What a decoded token costs; weights are unknown where the program has no table of tensors."""
    costs = Costs(module, element_bytes, tokens=1, context=CONTEXT)
    total = costs.total()
    kv = kv_token_bytes(module, "f16")
    return {
        f"operations a token, at {CONTEXT} positions": total.flops,
        "weight bytes read a token": total.weights if module.tensors else None,
        "KV bytes a token, in f16": float(sum(kv.values())),
        "layers that own K and V": float(len(kv)),
    }


@lru_cache(maxsize=64)
def _lines(file: str) -> tuple[str, ...]:
    """A spec's lines; of one known by its file name alone, as in printed IR, those of the shipped one."""
    path = Path(file)
    if not path.is_file():
        path = syntax.shipped().get(path.stem, path)
    try:
        return tuple(path.read_text(encoding="utf-8").split("\n"))
    except OSError:
        return ()


def place(span: Span) -> str:
    """`gemma4.arch:53`."""
    return f"{Path(span.file).name}:{span.line}"


def spec_line(span: Span) -> str:
    """The text of a spec line, if it can be found."""
    lines = _lines(span.file)
    return re.sub(r" +#", "  #", lines[span.line - 1].strip()) if 0 < span.line <= len(lines) else ""


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values; docs/cli.md describes them."""
    names = ("before", "after")
    return {
        "before": {"name": found.names[0], "about": found.about[0]},
        "after": {"name": found.names[1], "about": found.about[1]},
        "form": found.form,
        "same": found.same,
        "params": [asdict(row) for row in found.params],
        "kinds": [asdict(row) for row in found.kinds],
        "sections": [
            {"name": s.name, "status": s.status, "hunks": [_hunk(hunk, found) for hunk in s.hunks]}
            for s in found.sections
        ],
        "tensors": [asdict(row) for row in found.tensors],
        "kernels": [{"name": name, **dict(zip(names, values, strict=True))} for name, *values in found.kernels],
        "costs": [{"name": name, **dict(zip(names, values, strict=True))} for name, *values in found.costs],
    }


def _hunk(hunk: Hunk, found: Comparison) -> dict[str, Any]:
    return {
        "before": _spec(hunk.before),
        "after": _spec(hunk.after),
        "causes": [_spec(span) for span in causes(hunk, found)],
        "blocks": list(hunk.blocks),
        "layers": list(hunk.layers),
        "lines": [asdict(line) for line in hunk.lines],
    }


def _spec(span: Span | None) -> dict[str, Any] | None:
    if span is None:
        return None
    return {"file": Path(span.file).name, "line": span.line, "text": spec_line(span)}


def causes(hunk: Hunk, found: Comparison) -> list[Span]:
    """Lines behind a hunk that are worded differently, where two versions of one architecture are compared."""
    if not found.one_spec:
        return []
    known = {spec_line(span) for span in (*hunk.behind[0], *(s for s in (hunk.before, hunk.after) if s))}
    return [span for span in hunk.behind[1] if spec_line(span) not in known]


def where(hunk: Hunk) -> str:
    """Of which kinds and layers a hunk tells."""
    kinds = [".".join(name.split(".")[1:]) for name in hunk.blocks]
    layers = f"layers {layer_ranges(hunk.layers)}" if len(hunk.layers) > 1 else f"layer {layer_ranges(hunk.layers)}"
    return ": ".join(part for part in (", ".join(filter(None, kinds)), layers if hunk.layers else "") if part)
