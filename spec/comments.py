"""Gives each comment to the line it belongs to, so that the formatter loses none.

A comment above a statement, or inside one that spans lines, leads it; a comment after a statement is
its tail; a comment after `{` opens the body, and one before `}` closes it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from .tree import Architecture, Block, Body, Branch, Kind, Line, Loop, Model

L = TypeVar("L", bound=Line)


class _Comments:
    """The comments and blank lines of a text, taken out in order of line."""

    def __init__(self, text: str):
        self.at: dict[int, str] = {}
        self.blank: set[int] = set()
        for number, line in enumerate(text.split("\n"), 1):
            comment = _comment(line)
            if comment:
                self.at[number] = comment
            elif not line.strip():
                self.blank.add(number)
        self.next = 1

    def above(self, line: int) -> tuple[str, ...]:
        """What is left before `line`: comments, and "" for a run of blank lines."""
        taken: list[str] = []
        blanks = {n for n in self.blank if self.next <= n < line}
        for number in sorted({n for n in self.at if n < line} | blanks):
            if number in self.at:
                taken.append(self.at.pop(number))
            elif not taken or taken[-1]:
                taken.append("")
        self.next = max(self.next, line)
        return tuple(taken)

    def beside(self, line: int) -> str:
        self.next = max(self.next, line + 1)
        return self.at.pop(line, "")


def _comment(line: str) -> str:
    """The comment of a source line, `#` included and set off by a space; inside quotes a `#` is none."""
    match = re.match(r"""(?:[^"'#]|"[^"]*"|'[^']*')*(#.*)?""", line)
    if match is None or match[1] is None:
        return ""
    return re.sub(r"^(#+)(?=[^#\s])", r"\1 ", match[1].rstrip())


def attach(tree: Architecture, text: str) -> Architecture:
    """The tree with every comment of `text` in the line it stands above or beside."""
    comments = _Comments(text)
    lines = _lines(tree.lines, comments)
    closing = _trim(comments.above(text.count("\n") + 2))
    return dataclasses.replace(tree, lines=lines, closing=closing)


def _lines(lines: Sequence[Line], comments: _Comments) -> tuple[Line, ...]:
    done: list[Line] = []
    for place, line in enumerate(lines):
        follower = lines[place + 1].span.line if place + 1 < len(lines) else 0
        made = _line(line, comments, tail=follower != line.span.end_line)
        if not done and made.lead[:1] == ("",):
            made = dataclasses.replace(made, lead=made.lead[1:])
        done.append(made)
    return tuple(done)


def _line(line: L, comments: _Comments, tail: bool) -> L:
    """`tail` is false where another statement follows in the same source line and gets the comment."""
    lead = comments.above(line.span.line)
    bodies: dict[str, Any] = {}
    if isinstance(line, Block | Model | Loop | Kind):
        lead += _inside(line.body.span.line, comments)  # the header may span lines
        bodies["body"] = _body(line.body, comments)
    elif isinstance(line, Branch):
        lead += _inside(line.then.span.line, comments)
        bodies["then"] = _body(line.then, comments)
        if line.otherwise is not None:
            bodies["otherwise"] = _body(line.otherwise, comments)
    else:
        lead += _inside(line.span.end_line, comments)
    beside = comments.beside(line.span.end_line) if tail else ""
    return dataclasses.replace(line, lead=lead, tail=beside, **bodies)


def _inside(line: int, comments: _Comments) -> tuple[str, ...]:
    """Comments of the lines of one statement before its last; blank lines there are dropped."""
    return tuple(text for text in comments.above(line) if text)


def _body(body: Body, comments: _Comments) -> Body:
    first, last = body.span.line, body.span.end_line
    before = _inside(first, comments)  # only what stands between `}` and `else`
    lines, opening, closing = body.lines, "", before
    if first < last:
        alone = not lines or lines[0].span.line > first
        opening = comments.beside(first) if alone else ""
        lines = _lines(lines, comments)
        closing = _trim(comments.above(last))
        if not lines:
            closing = (*before, *(closing[1:] if closing[:1] == ("",) else closing))
    if lines:
        lines = (dataclasses.replace(lines[0], lead=before + lines[0].lead), *lines[1:])
        closing = closing if first < last else ()
    return dataclasses.replace(body, lines=lines, opening=opening, closing=closing)


def _trim(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Without blank lines at the end."""
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines
