"""What commands share: results on stdout, the rest on stderr, colour and progress on terminals only."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

from briolette.engine.telling import Telling

PATIENCE = 0.5  # seconds before a person is told what takes so long


def colours(stream: IO[str]) -> bool:
    """Whether colour is welcome there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, code: str, stream: IO[str]) -> str:
    """The text in a style (an SGR code, such as "2" for dim) where the stream shows styles."""
    return f"\033[{code}m{text}\033[0m" if text and colours(stream) else text


def result(text: str, end: str = "\n") -> None:
    """Something the person asked for."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def note(text: str) -> None:
    """Something about how it went."""
    sys.stderr.write(styled(text, "2", sys.stderr) + "\n")
    sys.stderr.flush()


def error(text: str) -> None:
    """What was wrong, and what to do."""
    sys.stderr.write(f"{styled('error:', '1;31', sys.stderr)} {text}\n")
    sys.stderr.flush()


def result_json(value: object) -> None:
    """One JSON document for a program to read."""
    result(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@contextlib.contextmanager
def busy(message: str) -> Iterator[None]:
    """Shows on a terminal, after half a second, what is going on."""
    if not sys.stderr.isatty():
        yield
        return
    shown: list[Any] = []
    lock, over = threading.Lock(), threading.Event()

    def show() -> None:
        if over.wait(PATIENCE):
            return
        from rich.console import Console

        with lock:
            if not over.is_set():
                shown.append(Console(stderr=True).status(message))
                shown[0].start()

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        with lock:
            if shown:
                shown[0].stop()


class Bar:
    """A progress bar on a terminal, for work of at least `least` units. Call it with (done, wanted)."""

    def __init__(self, message: str, least: int):
        self.message, self.least = message, least
        self.bar: Any = None

    def __call__(self, done: int, wanted: int) -> None:
        if wanted < self.least or not sys.stderr.isatty():
            return
        if self.bar is None and done < wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn(self.message), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=wanted)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)
        if done >= wanted:
            self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


TELLING = Telling(busy, lambda message: Bar(message, least=1))


def table(rows: list[list[str]], right: str = "") -> str:
    """Rows as aligned text; `right` has an `r` for each column that is set to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))] if rows else []
    sides = [str.rjust if c < len(right) and right[c] == "r" else str.ljust for c in range(len(widths))]
    lines = ("  ".join(s(cell, w) for cell, w, s in zip(row, widths, sides, strict=True)).rstrip() for row in rows)
    return "\n".join("  " + line for line in lines)
