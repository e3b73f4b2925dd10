"""`briolette fmt` and `briolette specs`: the architecture files."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from pathlib import Path

from briolette.compiler.errors import BrioletteError
from briolette.engine.writing import whole
from briolette.spec import syntax
from briolette.spec.format import format as canonical

from .terminal import colours, error, note, result, result_json, styled, table

STANDARD_OUTPUT = ("-", "/dev/stdout")


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
    """Puts a text in a file's place at once. Raises BrioletteError where that cannot be."""
    try:
        with whole(path) as file:
            file.write(text.encode())
    except OSError as problem:
        raise BrioletteError(f"cannot write {path}: {problem.strerror}{_advice(path, problem)}") from None


def page_target(name: str) -> Path | None:
    """Where a page is to go; None is standard output. Raises BrioletteError where no file can be."""
    if name in STANDARD_OUTPUT:
        return None
    if not name:
        raise BrioletteError("the name of the page is empty; say which file it is to be, or - for standard output")
    target = Path(name)
    if target.is_dir() or name.endswith(os.sep):
        raise BrioletteError(f"{name} is a folder; say with its name which file in it the page is to be")
    if not target.resolve().parent.is_dir():
        raise BrioletteError(f"cannot write {name}: there is no folder {target.parent}; make it first")
    return target


def _advice(path: Path, problem: OSError) -> str:
    """What to do about a file that cannot be written."""
    advice = {
        errno.ENOENT: f"make the folder {path.parent} first",
        errno.ENOTDIR: f"{path.parent} is no folder",
        errno.EISDIR: "name a file in it",
        errno.EACCES: f"check the permissions of {path.parent}",
        errno.EPERM: f"check the permissions of {path.parent}",
        errno.EROFS: "choose another place",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.ENOSPC: "make room there, or choose another place",
        errno.EDQUOT: "make room there, or choose another place",
    }
    return f"; {advice[problem.errno]}" if problem.errno in advice else ""


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
