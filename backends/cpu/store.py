"""What is kept on disk between runs: machine code, and records of the programs that it is of.

The cache is a folder of files, named by a hash of all that went into them. Writers put a complete file in place with
one rename, so processes that write at once do no harm; a file that does not carry its own hash (a torn disk, a full
one) is made again. What was not used for longest is removed when the folder has grown beyond `CACHE_LIMIT`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

import briolette.compiler

from .target import Target

CACHE_LIMIT = 512 << 20  # bytes
PRUNE_EVERY = 16 << 20  # bytes that a process writes before it looks again
_written: dict[Path, int] = {}
WRITING = ".writing-"  # how the names of unfinished files begin
_LENGTH = struct.Struct("<Q")
ABANDONED = 3600  # seconds after which a half-written file belongs to a writer that was killed


def cache_folder() -> Path:
    """Where object files are kept: $BRIOLETTE_CACHE, or briolette/ in the user's cache folder.

    Raises RuntimeError where the user has no home.
    """
    if chosen := os.environ.get("BRIOLETTE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "briolette"


@cache
def code_version() -> str:
    """A hash of all that makes code of an architecture's tree: changing a rule, what an op means or a kernel's source
    must not find what was made before."""
    rooms = [Path(__file__).parents[1], Path(briolette.compiler.__path__[0])]
    digest = hashlib.sha256(_llvm().encode())
    for room in rooms:
        for path in sorted(room.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(target: Target, parts: Iterable[str]) -> str:
    """The name of what is made for a machine of some parts, by code of this version."""
    digest = hashlib.sha256(f"{code_version()} {target}".encode())
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def text_key(target: Target, text: str) -> str:
    """The name of what LLVM makes for a machine of a text, whoever wrote that."""
    return hashlib.sha256(f"{_llvm()} {target}\0{text}".encode()).hexdigest()


def _llvm() -> str:
    return f"{llvmlite.__version__} {llvm.llvm_version_info}"


def kept(name: str, make: Callable[[], bytes]) -> bytes:
    """The file of a name, from disk or from `make`. A folder that cannot be written is no error."""
    found = look_up(name)
    if found is None:
        found = make()
        put(name, found)
    return found


def look_up(name: str) -> bytes | None:
    """The file of a name; None where there is none that is whole."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(name)
        stored = path.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            with contextlib.suppress(OSError):
                os.utime(path)  # used just now: the last to be removed
            return stored[32:]
    return None


def put(name: str, content: bytes) -> None:
    """Keeps the file of a name. A folder that cannot be written is no error."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(name)
        _put(path, hashlib.sha256(content).digest() + content)
        _written[path.parent] = _written.get(path.parent, PRUNE_EVERY) + len(content)
        if _written[path.parent] >= PRUNE_EVERY:  # not every time: there may be many thousands of small files
            _written[path.parent] = 0
            _prune(path.parent)


def _path(name: str) -> Path:
    return cache_folder() / "objects" / name


def joined(parts: Sequence[bytes]) -> bytes:
    """Several contents as one."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def parted(content: bytes) -> list[bytes]:
    """The contents that were joined."""
    found, at = [], 0
    while at < len(content):
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(content, at)[0]
        found.append(content[begin:at])
    return found


def _put(path: Path, content: bytes) -> None:
    """Writes a whole file under a name of its own, then gives it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=WRITING)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # an interruption may come after the file has its name
            os.unlink(temporary)
        raise


def _prune(folder: Path) -> None:
    """Removes the files that were not used for longest, as far as there are too many."""
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # another process may remove the same file
            state = entry.stat()
            if not entry.name.startswith(WRITING):
                found.append((state.st_mtime, state.st_size, entry.path))
            elif state.st_mtime < time.time() - ABANDONED:
                os.unlink(entry.path)
    excess = sum(size for _, size, _ in found) - CACHE_LIMIT
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
        excess -= size
