"""Kernels as text: what a launch needs to know of each, and the module of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# In the order in which they need each other.
LIBRARY = (
    "common",
    "tensor_cores",
    "blocks",
    "products",
    "gemm",
    "gemm_integers",
    "planes",
    "attend",
    "attend_codes",
    "attend_many",
    "small",
    "encode",
    "sample",
)

# Threads that a multiprocessor shall be able to hold, so that they have at most 128 registers each: what compilers for
# some GPUs choose by themselves is more, or so few that some are spilled.
RESIDENT = 512


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function: C++ parameters and body, threads of a block.

    needs: structures (`blocks`) that must stand before it, as text. resident: blocks that a multiprocessor shall be
    able to hold, which limits registers; 0 leaves them to the compiler, whose choice for some GPUs is to spill a few.
    """

    family: str
    parameters: tuple[str, ...]
    body: str
    threads: int
    needs: tuple[str, ...] = ()
    resident: int = 0

    @property
    def name(self) -> str:
        """By its content: equal kernels are one."""
        return structure_name(self.family, [*self.parameters, self.body, self.bounds, *self.needs])

    @property
    def bounds(self) -> str:
        return f"{self.threads}, {self.resident}" if self.resident else str(self.threads)

    @property
    def text(self) -> str:
        return _function(self.name, self.bounds, self.parameters, f"const uint3 block = blockIdx;\n{self.body}")


@dataclass(frozen=True)
class Together:
    """Kernels that do not wait for one another as one: the first blocks are those of the first, and so on.

    parts: kernels of as many threads, each with the sizes of its grid.
    """

    parts: tuple[tuple[Kernel, tuple[int, int, int]], ...]

    @property
    def name(self) -> str:
        return structure_name("together", [f"{kernel.name} {grid}" for kernel, grid in self.parts])

    @property
    def threads(self) -> int:
        return self.parts[0][0].threads

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(need for kernel, _ in self.parts for need in kernel.needs)

    @property
    def family(self) -> str:
        return "together"

    @property
    def blocks(self) -> int:
        return sum(x * y * z for _, (x, y, z) in self.parts)

    @property
    def text(self) -> str:
        """Each part's parameters under names of its own, which its body knows by the old ones."""
        parameters, lines, before = [], [], 0
        for i, (kernel, (x, y, z)) in enumerate(self.parts):
            named = [declaration.rsplit(" ", 1) for declaration in kernel.parameters]
            parameters += [f"{kind} of{i}_{name}" for kind, name in named]
            here = f"(int)blockIdx.x - {before}"
            before += x * y * z
            lines += [
                f"{'} else if' if i else 'if'} ((int)blockIdx.x < {before}) {{",
                f"  const int index = {here};",
                f"  const uint3 block = {{(u32)(index % {x}), (u32)(index / {x} % {y}), (u32)(index / {x * y})}};",
                *(f"  {kind} {name} = of{i}_{name};" for kind, name in named),
                *(f"  {line}" for line in kernel.body.splitlines()),
            ]
        return _function(self.name, str(self.threads), parameters, "\n".join([*lines, "}"]))


def _function(name: str, bounds: str, parameters: Iterable[str], body: str) -> str:
    head = f'extern "C" __global__ void __launch_bounds__({bounds}) {name}('
    return f"{head}\n    {', '.join(parameters)}) {{\n{_indented(body)}\n}}"


def structure_name(family: str, lines: Iterable[str]) -> str:
    """A name that tells contents apart."""
    content = "\n".join(lines)
    return f"{family}_{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def module_source(kernels: Iterable[Kernel | Together]) -> str:
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
