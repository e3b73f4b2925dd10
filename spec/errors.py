"""Errors for people: source spans, carets and the exception every user-facing mistake is reported with."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


class BrioletteError(Exception):
    """A mistake a person can mend. The message says what was wrong, where, and what to do.

    The command line prints the message without a traceback and exits with 2.
    """


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of a source text: 1-based line and column, end exclusive, and the file's name."""

    line: int
    col: int
    end_line: int
    end_col: int
    file: str = "<spec>"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}"

    @property
    def name(self) -> str:
        """The file without its folder."""
        return self.file.rsplit("/", 1)[-1]

    @property
    def place(self) -> str:
        """`file.arch:53`."""
        return f"{self.name}:{self.line}"


class SpecError(BrioletteError):
    """A mistake in an architecture file, shown with its line and carets."""

    def __init__(self, message: str, span: Span | None = None, source: str | None = None, hint: str = ""):
        self.message, self.span, self.hint = message, span, hint
        super().__init__(render(message, span, source, hint))

    def with_source(self, source: str) -> SpecError:
        """The same error, now able to show the line it points at."""
        return SpecError(self.message, self.span, source, self.hint)


def render(message: str, span: Span | None, source: str | None, hint: str = "") -> str:
    """`file:line:col: message`, the source line and carets under the span, and what to do about it."""
    if span is None:
        return message + (f"\n  {hint}" if hint else "")
    lines = [f"{span}: {message}"]
    text = source.split("\n") if source is not None else []
    if 0 < span.line <= len(text) and text[span.line - 1].strip():
        line = text[span.line - 1].rstrip()
        end = span.end_col if span.end_line == span.line else len(line) + 1
        before, under = line[: span.col - 1], line[span.col - 1 : end - 1]
        margin = " " * (span.col - 1 - len(before))  # a span may start past the end of its line
        lines.append("  " + "".join(map(_shown, line)))
        lines.append("  " + " " * _width(before) + margin + "^" * max(1, _width(under)))
    if hint:
        lines.append(f"  {hint}")
    return "\n".join(lines)


def _shown(char: str) -> str:
    if char == "\t":
        return "    "
    return char if char.isprintable() or unicodedata.category(char) in ("Cf", "Zs") else "\N{REPLACEMENT CHARACTER}"


def _width(text: str) -> int:
    """How many columns of a terminal a text takes; tabs are shown as four spaces."""
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if char == "\t":
        return 4
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
