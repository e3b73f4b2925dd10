"""Kernels as text: what a launch needs to know of each, and the module of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# In the order in which they need each other.
LIBRARY = ("common", "blocks", "products", "gemm", "planes", "attend", "attend_many", "small", "encode", "sample")


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function: C++ parameters and body, threads of a block.

    needs: structures (`blocks`) that must stand before it, as text.
    """

    family: str
    parameters: tuple[str, ...]
    body: str
    threads: int
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """By its content: equal kernels are one."""
        return structure_name(self.family, [*self.parameters, self.body, str(self.threads), *self.needs])

    @property
    def text(self) -> str:
        head = f'extern "C" __global__ void __launch_bounds__({self.threads}) {self.name}('
        return f"{head}\n    {', '.join(self.parameters)}) {{\n{_indented(self.body)}\n}}"


def structure_name(family: str, lines: Iterable[str]) -> str:
    """A name that tells contents apart."""
    content = "\n".join(lines)
    return f"{family}_{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def module_source(kernels: Iterable[Kernel]) -> str:
    """One translation unit of kernels, each once, after the library and the structures that they need."""
    kernels = {kernel.name: kernel for kernel in kernels}.values()
    needs = dict.fromkeys(need for kernel in kernels for need in kernel.needs if need)
    return "\n\n".join([library(), *needs, *(kernel.text for kernel in kernels)]) + "\n"


@cache
def library() -> str:
    """The text of all that kernels share."""
    folder = files(__package__) / "kernels"
    return "\n".join((folder / f"{name}.cuh").read_text() for name in LIBRARY)


def _indented(body: str) -> str:
    return "\n".join(f"  {line}" if line else line for line in body.splitlines())
