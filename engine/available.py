"""How much memory there is to use: what the system has available, or what a limit on this process leaves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from briolette.compiler.errors import BrioletteError

from .backends import room_of

PREFIXES = "KMGT"
_SIZE = re.compile(r"\s*(?P<number>\d{1,15}(?:\.\d{0,6})?)\s*(?P<unit>[KMGT]I?B|[KMGT]|B?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Available:
    """Bytes to use, and in words whose they are."""

    bytes: int
    source: str


@dataclass(frozen=True)
class _Group:
    """The files of a control group that tell of memory, in one version of Linux's interface."""

    mount: str
    limit: str
    used: str
    cache: tuple[str, ...]  # lines of memory.stat: pages of files, which are given back when wanted


_V1 = _Group(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = _Group("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file"))


def parsed_size(text: str) -> int:
    """Bytes of "8GB", "7.5GiB", "500MB" or a plain number; GB counts in thousands, GiB and G in 1024s.

    Raises BrioletteError for anything else.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise BrioletteError(f"{text!r} is no amount of memory; write 8GB, 7.5GiB, 500MB or a number of bytes")
    unit = found["unit"].upper()
    power = 1 + PREFIXES.index(unit[0]) if unit[:1] in tuple(PREFIXES) else 0
    base = 1000 if len(unit) == 2 else 1024
    return int(float(found["number"]) * base**power)


def memory_for(backend: str) -> Available:
    """What engines of a backend have to fit into: a device's memory where it has one, else the host's. Raises
    BrioletteError where the device is missing."""
    room = room_of(backend)
    if room is None:
        return available_memory()
    found = room()
    return Available(found.bytes, f"the {found.device} has free")


def available_memory(root: Path = Path("/")) -> Available:
    """The least of what the system has available and what the limits on this process leave of themselves."""
    found = [*_of_system(root), *_of_groups(root)]
    return min(found, key=lambda a: a.bytes)


def _of_system(root: Path) -> Iterator[Available]:
    told = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    if told:
        yield Available(1024 * int(told[1]), "this machine has available now")
    else:  # not Linux
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Available(physical, "this machine has, in use or not")


def _of_groups(root: Path) -> Iterator[Available]:
    """What each control group around this process leaves, where it has a limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version = _V2
        elif "memory" in controllers.split(","):
            version = _V1
        else:
            continue
        mount = root / version.mount
        inside = mount / path.lstrip("/")
        # A container sees its own group as the root of the mount, whatever the host calls it.
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(mount):
                yield from _of_group(folder, version)


def _of_group(folder: Path, version: _Group) -> Iterator[Available]:
    limit, used = _text(folder / version.limit).strip(), _text(folder / version.used).strip()
    if not limit.isdecimal() or not used.isdecimal():  # "max" is no limit
        return
    stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    given_back = sum(int(stat.get(name, 0)) for name in version.cache)
    left = int(limit) - max(0, int(used) - given_back)
    yield Available(max(0, left), "the memory limit of this container or session leaves")


def _text(path: Path) -> str:
    """A file's text; none where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
