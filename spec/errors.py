"""Errors for people: source spans, carets and the exception every user-facing mistake is reported with."""

from __future__ import annotations

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
    if source is not None:
        text = source.splitlines()
        if 0 < span.line <= len(text):
            line = text[span.line - 1]
            end = span.end_col if span.end_line == span.line else len(line) + 1
            lines.append("  " + line)
            lines.append("  " + " " * (span.col - 1) + "^" * max(1, end - span.col))
    if hint:
        lines.append(f"  {hint}")
    return "\n".join(lines)
