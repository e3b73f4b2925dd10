"""Two programs compared: everything that `diff` prints, as text, JSON or a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from briolette.backends.formats import element_bytes
from briolette.compiler.cost import Costs, kv_token_bytes
from briolette.compiler.diffing.hunks import Hunk, Section, rounding_differs, sections
from briolette.compiler.diffing.script import Difference, difference
from briolette.compiler.diffing.tables import Row, TensorRow, kind_rows, param_rows, renamed_rows, tensor_rows
from briolette.compiler.ir import Module
from briolette.compiler.text import layer_ranges
from briolette.compiler.unfuse import kernels, unfused
from briolette.spec import syntax
from briolette.spec.errors import Span

from .subjects import Subject

MANY = 6  # names of blocks that a person reads
CONTEXT = 4096  # positions that a token attends to, where costs are told


@dataclass(frozen=True)
class Comparison:
    """`same` tells whether there is any difference; the rest says which, in the order a person wants to read it."""

    names: tuple[str, str]
    about: tuple[str, str]
    form: str
    one_spec: bool  # two versions of one architecture, or one twice
    wordings: frozenset[str]  # of the lines of the first one's spec
    same: bool
    notes: tuple[str, ...]  # what the comparison leaves out
    renamed: list[Row]
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
    notes = []
    if bool(ours.tensors) != bool(theirs.tensors):
        bare = b.name if ours.tensors else a.name
        notes.append(f"{bare} was printed without its table of tensors, so tensors are left out: show --full prints it")
        ours, theirs = replace(ours, tensors=()), replace(theirs, tensors=())
    theirs = _in_order_of(ours, theirs)
    change = difference(ours, theirs)
    if rounding_differs(change):
        notes.append("some constants differ only by rounding: they are the same number in f32, and are not shown")
    found = _sections(change, (ours, theirs), (unfused(ours, *a.before), unfused(theirs, *b.before)))
    return Comparison(
        (a.name, b.name),
        (a.about, b.about),
        theirs.form,
        ours.name == theirs.name,
        _wordings(a.module),
        change.same,
        tuple(notes),
        renamed_rows(change, ours, theirs),
        param_rows(ours, theirs),
        kind_rows(ours, theirs),
        found,
        tensor_rows(ours, theirs),
        _beside(kernels(ours), kernels(theirs)),
        _beside(_costs(ours), _costs(theirs)),
    )


def told(value: float | None) -> str:
    """One of the numbers that are compared."""
    return "-" if value is None else f"{value:,.0f}"


def _in_order_of(a: Module, b: Module) -> Module:
    """The second module with its tensors in the order of the first: where they lie in a file is no difference."""
    place = {tensor.name: at for at, tensor in enumerate(a.tensors)}
    return replace(b, tensors=tuple(sorted(b.tensors, key=lambda tensor: place.get(tensor.name, len(place)))))


def _sections(change: Difference, whole: tuple[Module, Module], opened: tuple[Module, Module]) -> tuple[Section, ...]:
    """What differs but for how ops are grouped into kernels: where there are none, what differs at all."""
    return sections(change if opened == whole else difference(*opened), *opened)


def _beside(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> list[tuple[str, float | None, float | None]]:
    rows = [(name, before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))]
    return [row for row in rows if row[1:] != (None, None)]


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


def spec_line(span: Span) -> str:
    """The text of a spec line, if it can be found."""
    lines = _lines(span.file)
    return _wording(lines[span.line - 1]) if 0 < span.line <= len(lines) else ""


def _wording(line: str) -> str:
    return re.sub(r" +#", "  #", line.strip())


def _wordings(module: Module) -> frozenset[str]:
    """The lines of the spec that a program comes from."""
    files = {span.file for spans in module.origins.values() for span in spans}
    return frozenset(_wording(line) for file in files for line in _lines(file))


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values; docs/cli.md describes them."""
    names = ("before", "after")
    return {
        "before": {"name": found.names[0], "about": found.about[0]},
        "after": {"name": found.names[1], "about": found.about[1]},
        "form": found.form,
        "same": found.same,
        "notes": list(found.notes),
        "renamed": [asdict(row) for row in found.renamed],
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
        "causes": [{**_cause(span), "changed": mark == "+"} for mark, span in causes(hunk, found)],
        "blocks": list(hunk.blocks),
        "layers": list(hunk.layers),
        "lines": [asdict(line) for line in hunk.lines],
    }


def _spec(span: Span | None) -> dict[str, Any] | None:
    return None if span is None else _cause(span)


def _cause(span: Span) -> dict[str, Any]:
    return {"file": span.name, "line": span.line, "text": spec_line(span)}


def causes(hunk: Hunk, found: Comparison) -> list[tuple[str, Span]]:
    """Lines behind a hunk, where two versions of one architecture are compared: those worded differently (+), and,
    where the hunk's own line is, unchanged ones that it newly rests on (>)."""
    if not found.one_spec:
        return []
    known = {spec_line(span) for span in (*hunk.behind[0], *(s for s in (hunk.before, hunk.after) if s))}
    behind = [span for span in hunk.behind[1] if spec_line(span) not in known]
    marked = [(">" if spec_line(span) in found.wordings else "+", span) for span in behind]
    own = hunk.after is not None and spec_line(hunk.after) not in found.wordings
    return [(mark, span) for mark, span in marked if mark == "+" or own]


def where(hunk: Hunk) -> str:
    """Of which kinds and layers a hunk tells."""
    kinds = [name.partition(".")[2] for name in hunk.blocks]
    if len(kinds) > MANY:  # versions of kinds: those of a line that is another in every layer
        kinds = list(dict.fromkeys(kind.partition(".")[0] for kind in kinds))
    layers = f"layers {layer_ranges(hunk.layers)}" if len(hunk.layers) > 1 else f"layer {layer_ranges(hunk.layers)}"
    return ": ".join(part for part in (", ".join(filter(None, kinds)), layers if hunk.layers else "") if part)
