"""Compiles with g++, once: shared libraries are kept in a folder, named by all that they depend on."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import CompileError, EmulatorError

HERE = Path(__file__).parent
RUNTIME = HERE / "runtime"
INCLUDE = HERE / "include"


def compiler() -> str | None:
    """Path of the compiler, or None where there is none. $CXX may name another g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def identity() -> str:
    """The compiler's version and the processor's features: code is made for this machine (-march=native)."""
    found = compiler()
    if found is None:
        raise EmulatorError("the emulator needs g++ 12 or newer: install it, or name one in CXX")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    features = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        features += "".join(
            sorted({line for line in info.read_text().splitlines() if line.startswith(("flags", "Feat"))})
        )
    return version + features


def folder() -> Path:
    """Where libraries are kept: emulator/ in $BRIOLETTE_CACHE, or in the user's cache folder."""
    chosen = os.environ.get("BRIOLETTE_CACHE")
    cache = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "briolette"
    made = cache / "emulator"
    made.mkdir(parents=True, exist_ok=True)
    return made


@functools.cache
def header_texts() -> bytes:
    """All headers that a kernel can see."""
    return b"".join(path.read_bytes() for path in sorted([*INCLUDE.glob("*.h"), RUNTIME / "interface.h"]))


def key(*parts: str | bytes) -> str:
    """A name for what depends on these parts, the compiler and the processor."""
    digest = hashlib.sha256(identity().encode())
    for part in parts:
        digest.update(b"\0" + (part.encode() if isinstance(part, str) else part))
    return digest.hexdigest()[:32]


def gxx(arguments: Sequence[str], where: Path, text: str | None = None) -> str:
    """Runs the compiler in a folder; its standard output. Raises CompileError with its messages."""
    identity()
    done = subprocess.run([str(compiler()), *arguments], cwd=where, input=text, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr.strip())
    return done.stdout


def shared_library(name: str, sources: Iterable[Path], flags: Sequence[str]) -> Path:
    """Compiles and links C++ files, unless the library is there already."""
    target = folder() / f"{name}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as scratch:
            made = Path(scratch) / "made.so"
            gxx([*flags, "-shared", *map(str, sources), "-o", str(made)], Path(scratch))
            made.replace(target)  # atomic: another process may be at it too
    return target


def address_environment() -> dict[str, str]:
    """Environment of a process that can load modules with sanitize="address".

    AddressSanitizer must be there before all else. It ends the process at the first bad access, with a report on
    standard error that names the line of kernel.cu. Python's and numpy's own memory has exact bounds there too.
    """
    library = gxx(["-print-file-name=libasan.so"], Path.cwd()).strip()
    if not Path(library).is_file():
        raise EmulatorError("the compiler has no libasan")
    return os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}


RUNTIME_FLAGS = (
    "-std=c++17 -O2 -g1 -fPIC -march=native -fvisibility=hidden -fno-exceptions -fno-rtti -Wall -Wextra -pthread"
)


def runtime() -> Path:
    """The library that runs kernels: fibers, warps, launches, memory."""
    sources = sorted(RUNTIME.glob("*.cpp"))
    texts = b"".join(path.read_bytes() for path in sorted([*sources, *RUNTIME.glob("*.h")]))
    return shared_library("runtime-" + key(texts, RUNTIME_FLAGS), sources, RUNTIME_FLAGS.split())
