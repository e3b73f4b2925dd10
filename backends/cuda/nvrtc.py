"""Compiles kernels for a GPU that is not there, as CuPy would for one that is, and reads what they take off the log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from threading import Lock

from briolette.compiler.errors import BrioletteError

_LOADING = Lock()
ARCHITECTURES = (80, 89, 90)  # compute capabilities, times ten
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread, bytes of stack and of spilled registers of a thread, bytes of shared
    memory of a block."""

    registers: int
    stack: int
    spilled: int
    shared: int


def resources(source: str, architecture: int) -> dict[str, Resources]:
    """Of every kernel of a module, by name, for a compute capability (90 is 9.0).

    Raises BrioletteError where CuPy or the compiler is missing, and with the compiler's words where it refuses.
    """
    try:
        from cupy._core import core
        from cupy.cuda import nvrtc
    except ImportError:
        raise BrioletteError("compiling CUDA kernels needs CuPy: pip install 'briolette[cuda]'") from None
    try:  # CuPy without its compiler or headers tells so here
        with _LOADING:  # CuPy loads it at the first call: half of it where two come at once
            nvrtc.getVersion()
        program = nvrtc.createProgram(source, "kernels.cu", [], [])
        given = core.assemble_cupy_compiler_options(("-std=c++17",))
    except (RuntimeError, OSError) as error:
        raise BrioletteError(f"CUDA kernels cannot be compiled: {error}; pip install 'briolette[cuda]'") from None
    try:  # with the options that CuPy's RawModule gives, and a log
        fixed = ("-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space")
        nvrtc.compileProgram(program, [*given, *fixed, "--ptxas-options=-v"])
        return parsed(nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError:
        raise BrioletteError(f"the CUDA compiler refuses the kernels:\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


def parsed(log: str) -> dict[str, Resources]:
    """The resources in a compiler's log."""
    found = {}
    entries = list(_ENTRY.finditer(log))
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        part = log[entry.end() : following.start() if following else len(log)]
        spills, used, shared = (pattern.search(part) for pattern in (_SPILLS, _USED, _SHARED))
        found[entry[1]] = Resources(
            registers=int(used[1]) if used else 0,
            stack=int(spills[1]) if spills else 0,
            spilled=int(spills[2]) + int(spills[3]) if spills else 0,
            shared=int(shared[1]) if shared else 0,
        )
    return found
