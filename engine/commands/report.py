"""`briolette report`: one page about a model, for a browser."""

from __future__ import annotations

from typing import Any

from briolette.backends.base import Source
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.compiler.pipeline import Trace, front
from briolette.engine.comparison import compare
from briolette.engine.gguf import open_gguf
from briolette.engine.model import options_for
from briolette.engine.report.build import FORMS, default_output
from briolette.engine.report.build import report as page_of
from briolette.engine.report.ceilings import machine
from briolette.engine.report.diffview import diff_section
from briolette.engine.report.page import Section
from briolette.engine.source import architecture
from briolette.engine.subjects import Subject, is_architecture, subject
from briolette.engine.words import size

from .files import page_target, write_whole
from .terminal import busy, note, result

LEAST, BANDWIDTH, PEAK = 0.001, ("GB/s", 1e6), ("GFLOP/s", 1e9)  # what ceilings may be


def report(
    path: str,
    other: str | None,
    output: str | None,
    form: str,
    bandwidth: float | None,
    peak: float | None,
    options: dict[str, Any],
) -> None:
    if form not in FORMS:
        raise BrioletteError(f"there is no form `{form}` of a report; there are {', '.join(FORMS)}")
    target = page_target(str(default_output(path)) if output is None else output)
    for option, value, (unit, most) in (("--bandwidth", bandwidth, BANDWIDTH), ("--peak", peak, PEAK)):
        if value is not None and not LEAST <= value <= most:
            raise BrioletteError(f"{option} takes {unit} from {LEAST:g} to {most:,.0f}, not {value:g}")
    if is_architecture(path):
        raise BrioletteError(
            f"{path} is an architecture; a report is of a model: briolette report MODEL.gguf --spec {path}\n"
            f"  two architectures side by side: briolette diff {path} {other or 'OTHER'} --html {target or '-'}"
        )
    with busy("compiling"):
        file = open_gguf(path)
        if target is not None and target.exists() and target.samefile(file.path):
            raise BrioletteError(f"{target} is the model itself; say with -o where the page is to be")
        spec, kv, context, chunk = (options[key] for key in ("spec", "kv", "context", "chunk"))
        tree = architecture(spec, file.header)
        trace = Trace()
        made = Source.of(front(tree, file.header, trace))
        engine = options_for(file, kv, None, context, chunk, made=made)
        more = [] if other is None else [_beside(path, file.header, trace, subject(other))]
        text = page_of(file, tree, trace, engine, form, machine(bandwidth, peak), more)
    if target is None:
        result(text, end="")
        return
    write_whole(target, text)
    result(str(target))
    note(f"{size(len(text.encode()))}, whole in itself: open it with any browser")


def _beside(path: str, header: Header, trace: Trace, other: Subject) -> Section:
    """What differs from the model to another program."""
    name = str(header.metadata.get("general.name") or header.source)
    ours = Subject(path, name, "elaborated", trace.modules["elaborated"], header)
    return diff_section(compare(ours, other))
