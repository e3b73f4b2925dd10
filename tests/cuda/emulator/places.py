"""From an instruction's address to the line of the kernel's source, by the module's line table."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from . import build, native
from .errors import Place


def base_of(library: Path) -> int | None:
    """The address that a loaded library starts at, also if another process has put the same file in its place."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        path = fields[5].removesuffix(" (deleted)") if len(fields) == 6 else None
        if path == str(library.resolve()) and int(fields[2], 16) == 0:
            return int(fields[0].split("-")[0], 16)
    return None


def of_counter(library: Path, counter: int) -> Place | None:
    """The innermost line of a kernel's own source at an instruction, or None.

    Headers of the emulator are passed over for the line that called what they define.
    """
    tool, base = shutil.which("addr2line"), base_of(library)
    if not tool or base is None or counter < base:
        return None
    command = [tool, "-e", str(library), "-f", "-i", "-C", hex(counter - base)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    headers = str(build.HERE)
    for function, where in zip(lines[::2], lines[1::2], strict=False):
        found = re.match(r"(.*):(\d+)", where)
        if found and not found[1].startswith((headers, "?")) and not Path(found[1]).name.startswith("<"):
            return Place(Path(found[1]).name, int(found[2]), re.sub(r"emulated_entry_|\(.*", "", function))
    return None


def of_fault(library: Path, fault: native.Fault) -> tuple[Place | None, bool]:
    """Where a fault happened, and whether that is the very line and not the last one known."""
    if fault.program_counter and (place := of_counter(library, fault.program_counter)):
        return place, True
    if fault.line:
        return Place(fault.file.decode(), fault.line), bool(fault.in_source)
    return None, False


def message(library: Path, fault: native.Fault) -> str:
    """What happened; of a race, with the line of the other access."""
    text = fault.message.decode(errors="replace")
    other = of_counter(library, fault.second_counter) if fault.second_counter else None
    return f"{text} at {other}" if other else text
