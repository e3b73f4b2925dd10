"""The page of `diff --html`: two programs side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

from briolette.compiler.diffing import hunks as compared
from briolette.compiler.diffing.hunks import Hunk, Line
from briolette.compiler.diffing.tables import Row
from briolette.engine.comparison import Comparison, causes, spec_line, told, where

from .page import Section, escape, page, table

SIDES = ("before", "after")


def diff_page(found: Comparison) -> str:
    """The comparison as a page that needs nothing beside it."""
    names = " → ".join(map(escape, found.names))
    head = ("compared", "", f"<h1>{names}</h1>{_about(found)}")
    blocks = [(f"block-{s.name}", f"{s.name}{_status(s)}", _hunks(s, found)) for s in found.sections]
    numbers = [("numbers", "In numbers", "".join(_tables(found)))] if not found.same else []
    return page(f"{' → '.join(found.names)} · briolette", [head, *blocks, *numbers])


def diff_section(found: Comparison) -> Section:
    """The comparison as one section of another page."""
    blocks = "".join(f"<h3>{escape(s.name)}{_status(s)}</h3>{_hunks(s, found)}" for s in found.sections)
    return ("diff", f"Beside {found.names[1]}", f"{_about(found)}{blocks}{''.join(_tables(found))}")


def _about(found: Comparison) -> str:
    sides = table([[name, about] for name, about in zip(found.names, found.about, strict=True)])
    notes = "".join(f"<p>{escape(note)}.</p>" for note in found.notes)
    return f"{sides}{'<p>There is no difference.</p>' * found.same}{notes}"


def _hunks(section: compared.Section, found: Comparison) -> str:
    return "".join(_hunk(hunk, found) for hunk in section.hunks)


def _tables(found: Comparison) -> Iterator[str]:
    tables = (("renamed", found.renamed), ("hyperparameter", found.params), ("kind of layer", found.kinds))
    for title, differing in tables:
        yield _rows(title, differing)
    if found.tensors:
        yield table([[row.name, row.before or "-", row.after or "-"] for row in found.tensors], ["tensor", *SIDES])
    for title, numbers in (("kernels", found.kernels), ("cost", found.costs)):
        if numbers:
            yield table(([name, *map(told, values)] for name, *values in numbers), [title, *SIDES], "lrr")


def _status(section: compared.Section) -> str:
    return "" if section.status == "changed" else f" ({section.status})"


def _rows(title: str, rows: list[Row]) -> str:
    cells = [[row.name, row.before or "-", row.after or "-"] for row in rows]
    return table(cells, [title, *SIDES]) if rows else ""


def _hunk(hunk: Hunk, found: Comparison) -> str:
    behind = [
        _row((("", "quiet"), (f"<b>{'&gt; ' * (mark == '>')}{span.place}</b>  {escape(spec_line(span))}", "quiet")))
        for mark, span in causes(hunk, found)
    ]
    rows = [_specs(hunk), *behind, *(_line(line) for line in hunk.lines)]
    about = where(hunk)
    caption = f"<caption>{escape(about)}</caption>" if about else ""
    return f'<table class="diff">{caption}<tbody>{"".join(rows)}</tbody></table>'


def _specs(hunk: Hunk) -> str:
    """The lines of the two specs, with the words marked that only one has."""
    texts = [spec_line(span) if span else "" for span in (hunk.before, hunk.after)]
    words = [re.findall(r"\w+|\s+|.", text) for text in texts]
    matcher = SequenceMatcher(None, *words, autojunk=False)
    sides = [[f"<b>{escape(span.place)}</b>  "] if span else [] for span in (hunk.before, hunk.after)]
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        for side, part in zip(sides, ("".join(words[0][i1:i2]), "".join(words[1][j1:j2])), strict=True):
            side.append(
                escape(part) if tag == "equal" or not all(texts) else f"<mark>{escape(part)}</mark>" * bool(part)
            )
    return _row((("".join(sides[0]), "quiet"), ("".join(sides[1]), "quiet")))


def _line(line: Line) -> str:
    """An op, what it was at the left and what it is at the right."""
    if line.mark == "~":
        left = "\n".join(f"{change.what}: {change.before or 'none'}" for change in line.changes)
        right = "\n".join(f"{change.what}: {change.after or 'none'}" for change in line.changes)
        op = f"<td colspan=2>{escape(line.text)}</td>"
        return f"<tr>{op}</tr>{_row(((escape(left), 'chg'), (escape(right), 'chg')))}"
    shown = escape(line.text)
    return _row(((shown, "del"), ("", ""))) if line.mark == "-" else _row((("", ""), (shown, "ins")))


def _row(cells: tuple[tuple[str, str], ...]) -> str:
    return f"<tr>{''.join(f'<td class={css}>{text}</td>' if css else '<td></td>' for text, css in cells)}</tr>"
