"""`briolette trace`: the values of a pass, recorded; and where a program and a reference part."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Node
from briolette.compiler.plan import is_view
from briolette.compiler.values import stem
from briolette.spec.errors import SpecError
from briolette.spec.tree import Architecture

from ..gguf import open_gguf
from ..model import Model, load
from ..source import architecture
from ..tracing.compare import Tracing, held_against, same_tokens
from ..tracing.file import Recording, save
from ..tracing.file import load as load_trace
from ..tracing.judge import Finding
from ..tracing.record import record, where
from ..tracing.replay import Compared, result_label, scope_of
from ..tracing.source import kinds_decided, rests_on, shown
from ..words import ids_of, size
from .terminal import busy, colours, note, result, result_json, styled, table

WINDOW = 4  # rows shown before and after the first divergence
BAR = 12  # characters of the widest bar
FAINT = 1e-8  # the error at which a bar begins
SHOWN = 6  # labels listed before "and so on"


def trace(
    path: str,
    prompt: str | None,
    tokens: str | None,
    output: str | None,
    against: str | None,
    against_spec: str | None,
    patterns: Sequence[str],
    tolerance: float | None,
    everything: bool,
    as_json: bool,
    options: dict[str, Any],
) -> int:
    """Records, compares or lists; gives the exit code."""
    if prompt is not None and tokens is not None:
        raise BrioletteError("give --prompt or --tokens, not both")
    if against is None:
        if tolerance is not None or against_spec is not None or everything:
            raise BrioletteError("--tolerance, --against-spec and --all belong to a comparison: give --against")
        model = opened(path, options["spec"], options["backend"], options["kv"])
        recorded = recording(model, token_ids(model, prompt, tokens), patterns)
        if output is None:
            listing(model, recorded, as_json)
        else:
            written(output, recorded)
        return 0
    reference = against_what(path, against, against_spec, prompt, tokens, options["backend"], options["kv"])
    kv = options["kv"] or str(reference.about.get("kv", "f32"))
    model = opened(path, options["spec"], options["backend"], kv)
    ids = reference.tokens.tolist() if prompt is None and tokens is None else token_ids(model, prompt, tokens)
    same_tokens(np.array(ids), reference)
    # What the reference backend computes is part of any comparison.
    seen = output is not None or options["backend"] != "reference"
    ours = recording(model, ids, patterns if output is not None else ()) if seen else None
    with busy("comparing"):
        found = held_against(model.file, model.tree, model.module, reference, ours, tolerance, patterns)
    for remark in found.notes:
        note(remark)
    if output is not None and ours is not None:
        written(output, ours)
    if as_json:
        result_json(document(found, model))
    else:
        result(report(found, model, everything))
    return 1 if found.findings else 0


def opened(path: str, spec: str | None, backend: str, kv: str | None) -> Model:
    """The model. Where spec and file do not fit, the error tells what the line at fault rests on."""
    tree = architecture(spec, open_gguf(path).header)
    try:
        return load(path, backend=backend, kv=kv, spec=tree, prefill="exact")
    except SpecError as problem:
        raise with_reasons(problem, tree) from None


def with_reasons(problem: SpecError, tree: Architecture) -> SpecError:
    """The error, with the declarations that its line takes values from."""
    found = rests_on(tree, problem.span) if problem.span is not None else []
    here = [kind for _, kind, _ in found if kind and problem.message.endswith(f", {kind})")]
    found = [reason for reason in found if not here or reason[1] in ("", *here)]
    if not found:
        return problem
    reasons = ", ".join(f"`{name}` of line {line.span.line}" for name, _, line in found)
    decided = kinds_decided(tree)
    if decided is not None and any(kind for _, kind, _ in found):
        reasons += f"; which kind a layer is of is said by line {decided.span.line}"
    hint = f"{problem.hint}\n  " if problem.hint else ""
    return SpecError(problem.message, problem.span, tree.source, f"{hint}this line rests on {reasons}")


def token_ids(model: Model, prompt: str | None, tokens: str | None) -> list[int]:
    """The tokens to run."""
    if tokens is not None:
        return ids_of(tokens, "--tokens")
    if prompt is None:
        raise BrioletteError("there is nothing to run: give a --prompt, or --tokens such as 2,5,9")
    return model.tokenize(prompt)


def against_what(
    path: str, against: str, spec: str | None, prompt: str | None, tokens: str | None, backend: str, kv: str | None
) -> Recording:
    """The reference: a trace, or a recording of a model file made here and now."""
    if Path(against).suffix != ".gguf":
        if spec is not None:
            raise BrioletteError(
                f"--against-spec is for a model file; {against} is a trace, which has its values already"
            )
        return load_trace(against)
    model = opened(against, spec, backend, kv)
    return recording(model, token_ids(model, prompt, tokens), ())


def recording(model: Model, ids: Sequence[int], patterns: Sequence[str]) -> Recording:
    with busy("recording"):
        found = record(model, ids, patterns)
    model.close()
    return found


def written(output: str, recorded: Recording) -> None:
    save(output, recorded)
    bytes = sum(value.nbytes for value in recorded.values.values())
    note(f"{len(recorded.values)} values of {len(recorded.tokens)} tokens in {output} ({size(bytes)})")


# --- what a recording holds -----------------------------------------------------------------------------


def listing(model: Model, recorded: Recording, as_json: bool) -> None:
    """The recorded values, without their numbers."""
    rows = [
        {
            "label": label,
            **{key: recorded.told(label)[key] for key in ("op", "where", "shape", "names")},
            "rms": float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))),
        }
        for label, value in recorded.values.items()
    ]
    if as_json:
        result_json({"model": recorded.source, "tokens": recorded.tokens.tolist(), "values": rows})
        return
    head = ["value", "op", "shape", "spec line", "rms"]
    body = [[r["label"], r["op"], _shape(r["shape"]), r["where"], f"{r['rms']:.4g}"] for r in rows]
    result(table([head, *body], "llllr"))


# --- what a comparison found ----------------------------------------------------------------------------


def report(found: Tracing, model: Model, everything: bool) -> str:
    """The comparison as text."""
    reference = found.reference
    about = (
        f"{model.file.path.name} by {Path(str(model.tree.span.file)).name} on {model.backend.name}, against "
        f"{reference.source} ({reference.producer}, {reference.precision}), {len(reference.tokens)} tokens"
    )
    sections = [about]
    if found.findings:
        sections += [told(found, found.findings[0], model), *also(found)]
    else:
        worst = max(found.rows, key=lambda row: row.local)
        sections.append(
            f"{styled('nothing diverges', '1;32', sys.stdout)}: {len(found.rows)} values compared, each from the "
            f"reference's values before it; the largest error is {worst.local:.2g}, of {worst.label}"
        )
    sections += structure(found)
    sections.append(errors(found, everything))
    return "\n\n".join(sections)


def told(found: Tracing, finding: Finding, model: Model) -> str:
    """The first divergence: what, where, how much, and why."""
    row, (layer, block) = finding.row, found.module.places.get(finding.row.node, (None, "main"))
    kind = next((name for name, layers, _ in found.module.kinds if layer in layers), "")
    at = "outside of the layers" if layer is None else f"layer {layer}" + (f" ({kind})" if kind else "")
    head = styled("first divergence", "1;31", sys.stdout)
    lines = [f"{head}: {styled(row.label, '1', sys.stdout)}, {at}, block {stem(block)}, {finding.item.op}"]
    if finding.place is not None:
        lines.append(shown(finding.place, finding.place.why or "here the two part", found.tree))
    if finding.side == "backend":
        lines.append(
            f"  The program is right: it is {model.backend.name} that computes this op otherwise than it is defined."
        )
    if finding.between and finding.cause is None:
        named = ", ".join(f"`{label}`" for label in finding.between)
        lines.append(f"  On the way there the reference has {named}, which equals nothing of ours.")
    elif len(finding.through) > 1 and finding.cause is None:
        lines.append(f"  The reference has nothing in between: it may be any of lines {_listed(finding.through)}.")
    if row.note:
        lines.append(f"  {row.note}")
    if finding.cause is not None:
        lines.append(f"  {styled('likely cause', '1', sys.stdout)}: {finding.cause.text}")
    apart = "" if math.isinf(row.local) else f"  From the reference's values before it, it is off by {row.local:.2g}; "
    lines.append(f"{apart}rounding explains {row.allowed:.1g}." if apart else "  The two have no number in common.")
    if len(finding.labels) > 1:
        lines.append(f"  The same line diverges in {_listed(finding.labels)}.")
    return "\n".join(lines)


def also(found: Tracing) -> list[str]:
    """The other lines that diverge by themselves."""
    rows = [
        [
            finding.row.label + (f" and {len(finding.labels) - 1} more" if len(finding.labels) > 1 else ""),
            "" if finding.place is None else finding.place.span.place,
            f"{finding.row.local:.2g}",
            finding.cause.text if finding.cause is not None else "",
        ]
        for finding in found.findings[1:]
    ]
    return ["also diverging, each by itself:\n" + table(rows, "llr")] if rows else []


def structure(found: Tracing) -> list[str]:
    """What only one side has."""
    sides = (("the reference", found.missing), ("this program", found.extra))
    return [f"only {who} has {_listed(names)}" for who, names in sides if names]


def errors(found: Tracing, everything: bool) -> str:
    """The error growing along the graph: all rows, or a window around the first divergence and one row a layer."""
    first = found.findings[0].row if found.findings else None
    rows = distinct(found.rows, first)
    kept = rows if everything else compressed(found, rows, first)
    head = ["", "value", "op", "shape", "spec line", "error", "explained", "this step", ""]
    body = [
        [
            ">" if row is first else "!" if row.diverges else "",
            row.label,
            row.node.op,
            _shape(row.theirs.shape),
            where(found.module, row.node),
            f"{row.error:.1e}",
            f"{row.explained:.1e}",
            f"{row.local:.1e}",
            bar(row.error),
        ]
        for row in kept
    ]
    text = table([head, *body], "lllllrrr")
    left = len(rows) - len(kept)
    return text + (f"\n  ({left} more rows with --all)" if left else "")


def distinct(rows: Sequence[Compared], first: Compared | None) -> list[Compared]:
    """One row a value: of its names the first, and views only where they are what differs."""
    seen: set[tuple[Node, bool]] = set()
    kept = []
    for row in rows:
        if row is first or ((row.node, row.diverges) not in seen and (row.diverges or not is_view(row.node))):
            kept.append(row)
        seen.add((row.node, row.diverges))
    return kept


def compressed(found: Tracing, rows: Sequence[Compared], first: Compared | None) -> list[Compared]:
    """The rows worth a look."""
    at = next((i for i, row in enumerate(rows) if row is first), -1)
    results = {result_label(found.module, row.node) for row in found.rows} & {row.label for row in found.rows}
    ends = {scope_of(row.label): row for row in rows if result_label(found.module, row.node) in results}
    last = rows[-1]
    return [
        row
        for i, row in enumerate(rows)
        if (first is not None and abs(i - at) <= WINDOW) or row is last or any(row is end for end in ends.values())
    ]


def bar(error: float) -> str:
    """An error as a bar, on a logarithmic scale up to 1."""
    if not error > FAINT:
        return ""
    share = 1.0 if math.isinf(error) else min(1.0, 1 - math.log10(error) / math.log10(FAINT))
    filled = round(BAR * share)
    return styled("█" * filled, "31" if share > 0.6 else "33", sys.stdout) if colours(sys.stdout) else "█" * filled


def document(found: Tracing, model: Model) -> dict[str, Any]:
    """The comparison for a program to read."""
    reference = found.reference
    return {
        "model": model.file.path.name,
        "spec": str(model.tree.span.file),
        "backend": model.backend.name,
        "reference": {"file": reference.source, "producer": reference.producer, "precision": reference.precision},
        "tokens": reference.tokens.tolist(),
        "tolerance": found.floor,
        "diverges": bool(found.findings),
        "findings": [_finding(found, finding) for finding in found.findings],
        "notes": found.notes,
        "only_in_reference": found.missing,
        "only_here": found.extra,
        "values": [_row(found, row) for row in found.rows],
    }


def _finding(found: Tracing, finding: Finding) -> dict[str, Any]:
    place = finding.place
    return {
        **_row(found, finding.row),
        "blamed_op": finding.item.op,
        "side": finding.side,
        "line": None if place is None else {"file": place.span.file, "line": place.span.line, "column": place.span.col},
        "why_this_line": place.why if place is not None else "",
        "lines_between": list(finding.through),
        "between": list(finding.between),
        "cause": finding.cause.text if finding.cause is not None else None,
        "labels": list(finding.labels),
    }


def _row(found: Tracing, row: Compared) -> dict[str, Any]:
    layer, block = found.module.places.get(row.node, (None, "main"))
    return {
        "label": row.label,
        "layer": layer,
        "block": stem(block),
        "op": row.node.op,
        "shape": list(row.theirs.shape),
        "where": where(found.module, row.node),
        "error": _number(row.error),
        "explained": _number(row.explained),
        "step_error": _number(row.local),
        "step_allowed": _number(row.allowed),
        "diverges": row.diverges,
        "note": row.note,
    }


def _number(value: float) -> float | None:
    """A number that JSON has; what is infinite or NaN is null."""
    return value if math.isfinite(value) else None


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more
