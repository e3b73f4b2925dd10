"""`briolette diff`: how two programs differ."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from briolette.compiler.diffing.hunks import Hunk, Line
from briolette.compiler.diffing.tables import Row
from briolette.compiler.errors import BrioletteError
from briolette.engine.comparison import Comparison, as_json, causes, compare, spec_line, told, where
from briolette.engine.subjects import two

from .files import page_target, write_whole
from .terminal import busy, note, result, result_json, styled, table

SAME, DIFFERENT = 0, 1
COLOUR = {"+": "32", "-": "31", "~": "33"}
WIDEST = 60  # characters of a cell


def diff(
    a: str, b: str, on: str | None, form: str, kv: str | None, html: str | None, json: bool, everything: bool
) -> int:
    """Prints the differences; the exit code says whether there are any."""
    target = None if html is None else page_target(html)
    if json and html is not None and target is None:
        raise BrioletteError(f"--json and --html {html} both want standard output; give the page a file's name")
    with busy("comparing"):
        found = compare(*two(a, b, on, form, kv))
    if html is not None:
        from briolette.engine.report.diffview import diff_page

        page = diff_page(found)
        if target is None:
            result(page, end="")
        else:
            write_whole(target, page)
            (note if json else result)(str(target))
    if json:
        result_json(as_json(found))
    elif html is None:
        result(report(found, everything))
    for text in found.notes:
        note(text)
    return SAME if found.same else DIFFERENT


def report(found: Comparison, everything: bool = False) -> str:
    """The comparison as text. `everything` lists the tensors that differ in shape alone, too."""
    heads = [
        _paint(mark, f"{mark * 3} {name}  ({about})")
        for mark, name, about in zip("-+", found.names, found.about, strict=True)
    ]
    parts = ["\n".join(heads)]
    if found.same:
        return f"{parts[0]}\n\nno difference"
    parts += [_rows("renamed", found.renamed), _rows("hyperparameter", found.params), _rows("kind", found.kinds)]
    for section in found.sections:
        status = {"new": "  (new)", "gone": "  (gone)"}.get(section.status, "")
        title = styled(f"{section.name}{status}", "1", sys.stdout)
        parts.append("\n\n".join([title, *(_hunk(hunk, found) for hunk in section.hunks)]))
    parts += [_tensors(found, everything), _numbers("kernels", found.kernels), _numbers("cost", found.costs)]
    return "\n\n".join(part for part in parts if part)


def _hunk(hunk: Hunk, found: Comparison) -> str:
    about = where(hunk)
    lines = [styled(f"  @ {about}", "36", sys.stdout)] if about else []
    same = hunk.before and hunk.after and spec_line(hunk.before) == spec_line(hunk.after)
    for mark, span in (("-", hunk.before), ("+", hunk.after)):
        if span is not None and not (same and mark == "-"):
            lines.append(styled(f"  {' ' if same else mark} {span.place}  {spec_line(span)}", "2", sys.stdout))
    for mark, span in causes(hunk, found):
        lines.append(styled(f"  {mark} {span.place}  {spec_line(span)}", "2", sys.stdout))
    for line in hunk.lines:
        lines += _line(line)
    return "\n".join(lines)


def _line(line: Line) -> list[str]:
    found = [_paint(line.mark, f"      {line.mark} {line.text}")]
    for change in line.changes:
        found.append(
            _paint(line.mark, f"          {change.what}: {change.before or 'none'} → {change.after or 'none'}")
        )
    return found


def _paint(mark: str, text: str) -> str:
    return styled(text, COLOUR[mark], sys.stdout)


def _rows(title: str, rows: list[Row]) -> str:
    if not rows:
        return ""
    return table([[title, "before", "after"], *([r.name, _cell(r.before), _cell(r.after)] for r in rows)])


def _cell(text: str) -> str:
    text = text or "-"
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _tensors(found: Comparison, everything: bool) -> str:
    shown = [row for row in found.tensors if row.partly or everything]
    rows = [[row.name, _cell(row.before), _cell(row.after)] for row in shown]
    rest = len(found.tensors) - len(shown)
    parts = [table([["tensor", "before", "after"], *rows])] if rows else []
    if rest:
        parts.append(
            f"  {rest} tensor{'s' * (rest > 1)} in both, of other shapes, formats or layers (--all lists them)"
        )
    return "\n".join(parts)


def _numbers(title: str, found: Sequence[tuple[str, float | None, float | None]]) -> str:
    if not found:
        return ""
    rows = [[name, *map(told, values)] for name, *values in found]
    return table([[title, "before", "after"], *rows], "lrr")
