"""LLVM modules to machine code, kept on disk between runs.

The cache is a folder of object files, named by a hash of all that went into them. Writers put a
complete file in place with one rename, so processes that write at once do no harm; a file that does
not carry its own hash (a torn disk, a full one) is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from .build import Target


def cache_folder() -> Path:
    """Where object files are kept: $BRIOLETTE_CACHE, or briolette/ in the user's cache folder."""
    if chosen := os.environ.get("BRIOLETTE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "briolette"


@cache
def code_version() -> str:
    """A hash of the code generator itself: changing a kernel's source must not find old objects."""
    room = Path(__file__).parent
    sources = sorted([*room.rglob("*.py"), room.parent / "formats.py"])
    digest = hashlib.sha256(llvmlite.__version__.encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def object_key(target: Target, parts: Iterable[str]) -> str:
    digest = hashlib.sha256(f"{code_version()} {target}".encode())
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def compile_object(module: ir.Module, target: Target) -> bytes:
    """Machine code of a module. No IR passes are run: kernels are emitted as they shall be."""
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    code: bytes = target.machine().emit_object(parsed)
    return code


def cached_object(key: str, make: Callable[[], bytes]) -> bytes:
    """The object file of a key, from disk or from `make`. A folder that cannot be written is no error."""
    path = cache_folder() / "objects" / f"{key}.o"
    with contextlib.suppress(OSError):
        stored = path.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return stored[32:]
    code = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    return code


class Library:
    """Loaded machine code; functions by name. The code lives as long as this object."""

    def __init__(self, code: bytes, target: Target):
        self.machine = target.machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self.machine)
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()

    def address(self, name: str) -> int:
        found: int = self.engine.get_function_address(name)
        assert found, f"no function {name} in the object"
        return found
