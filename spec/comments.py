"""Gives each comment to the line it belongs to, so that the formatter loses none."""

from __future__ import annotations

import dataclasses
import re
from typing import TypeVar

from .syntax import Architecture, Block, Body, Branch, Kind, Line, Loop, Model

L = TypeVar("L", bound=Line)


class _Comments:
    """The comments and blank lines of a text, taken out in order of line."""

    def __init__(self, text: str):
        self.at: dict[int, str] = {}
        self.alone: set[int] = set()
        for number, line in enumerate(text.splitlines(), 1):
            code, comment = _split(line)
            if comment is not None:
                self.at[number] = comment
            if not code.strip():
                self.alone.add(number)
        self.next = 1

    def above(self, line: int) -> tuple[str, ...]:
        """Comment lines and blank lines between what was taken last and `line`; runs of blanks count once."""
        taken: list[str] = []
        for number in range(self.next, line):
            text = self.at.pop(number, None)
            if text is not None:
                taken.append(text)
            elif number in self.alone and (not taken or taken[-1]) and number > 1:
                taken.append("")
        self.next = max(self.next, line)
        return tuple(taken)

    def beside(self, line: int) -> str:
        self.next = max(self.next, line + 1)
        return self.at.pop(line, "")


def _split(line: str) -> tuple[str, str | None]:
    """Code and comment of a source line; a `#` inside quotes is no comment."""
    match = re.match(r'((?:[^"#]|"[^"]*")*)(#.*)?', line)
    assert match is not None
    comment = match[2]
    return match[1], comment[1:].strip() if comment is not None else None


def attach(tree: Architecture, text: str) -> Architecture:
    """The tree with every comment of `text` in the line it stands above or beside."""
    comments = _Comments(text)
    lines = tuple(_line(line, comments) for line in tree.lines)
    closing = _trim(comments.above(len(text.splitlines()) + 1))
    return dataclasses.replace(tree, lines=lines, closing=closing)


def _line(line: L, comments: _Comments) -> L:
    lead = comments.above(line.span.line)
    if isinstance(line, Block | Model | Loop | Kind):
        body = _body(line.body, comments)
        return dataclasses.replace(line, lead=lead, body=body, tail=comments.beside(_end(line)))
    if isinstance(line, Branch):
        then = _body(line.then, comments)
        other = _body(line.otherwise, comments) if line.otherwise else None
        tail = comments.beside(_end(line))
        return dataclasses.replace(line, lead=lead, then=then, otherwise=other, tail=tail)
    # A statement over several lines keeps one tail; comments inside it move above it.
    inner = comments.above(_end(line)) if _end(line) > line.span.line else ()
    return dataclasses.replace(line, lead=lead + tuple(c for c in inner if c), tail=comments.beside(_end(line)))


def _body(body: Body, comments: _Comments) -> Body:
    single = body.span.line == body.span.end_line
    opening = "" if single else comments.beside(body.span.line)
    lines = []
    for line in body.lines:
        if single:
            lines.append(line)
            continue
        lines.append(_line(line, comments))
    if lines and lines[0].lead[:1] == ("",):
        lines[0] = dataclasses.replace(lines[0], lead=lines[0].lead[1:])
    closing = () if single else _trim(comments.above(body.span.end_line))
    return dataclasses.replace(body, lines=tuple(lines), opening=opening, closing=closing)


def _trim(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Without blank lines at the end."""
    while lines and not lines[-1]:
        lines = lines[:-1]
    return lines


def _end(line: Line) -> int:
    return line.span.end_line
