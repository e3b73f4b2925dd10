"""`briolette fmt` and `briolette specs`: the architecture files."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import tempfile
from pathlib import Path

from briolette.compiler.errors import BrioletteError
from briolette.spec import syntax
from briolette.spec.format import format as canonical

from .terminal import colours, error, note, result, result_json, styled, table


def fmt(names: list[str], check: bool, diff: bool) -> int:
    """The exit code: 0, or 1 where `check` finds a file to change, or 2 where one is wrong."""
    changed, wrong = 0, 0
    for name in names:
        try:
            changed += _format_one(name, check, diff)
        except BrioletteError as problem:
            error(str(problem))
            wrong += 1
    if check and changed:
        note(f"{changed} of {len(names)} files would change; `briolette fmt FILES` writes them")
    return 2 if wrong else int(bool(changed and check))


def _format_one(name: str, check: bool, diff: bool) -> bool:
    """Whether the file is not in canonical form, or was not."""
    if name == "-":
        text = sys.stdin.read()
        after = canonical(syntax.parse(text, "<stdin>"))
        if not (check or diff):
            result(after, end="")
    else:
        tree = syntax.load(name)
        text, after = Path(name).read_bytes().decode(), canonical(tree)
    if text == after:
        return False
    if diff:
        _show_diff(text, after, name)
    if check:
        note(f"{name} would change")
    elif not diff and name != "-":
        write_whole(Path(name), after)
        note(f"{name} formatted")
    return True


def write_whole(path: Path, text: str) -> None:
    """Puts a text in a file's place at once: whoever reads it finds the old or the new one, never a half."""
    path = path.resolve()  # through a link, and not in its place
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode())
            os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as problem:
        raise BrioletteError(f"cannot write {path}: {problem.strerror}; check its permissions") from None


def _show_diff(before: str, after: str, name: str) -> None:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, f"{name} (canonical)", lineterm="")
    codes = {"+": "32", "-": "31", "@": "36"}
    for line in lines:
        result(styled(line, codes[line[0]], sys.stdout) if colours(sys.stdout) and line[:1] in codes else line)


def specs(as_json: bool) -> None:
    rows = [(name, _about(path), path) for name, path in syntax.shipped().items()]
    if as_json:
        result_json([{"name": name, "about": about, "path": str(path)} for name, about, path in rows])
    else:
        result(table([[name, about, str(path)] for name, about, path in rows]))


def _about(path: Path) -> str:
    """The comment on a spec's first line."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""
