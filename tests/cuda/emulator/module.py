"""Modules and kernels: compile a source, launch what it defines."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from ctypes import c_char_p, c_uint64, c_void_p
from pathlib import Path

from . import native, places, source
from .errors import EmulatorError, KernelFault, UnknownKernel

Triple = tuple[int, int, int]
ONE_WORKER = ("address", "race")  # what they record is one block's
MOST_THREADS = 1024
MOST_BLOCK: Triple = (1024, 1024, 64)
MOST_GRID: Triple = (2**31 - 1, 65535, 65535)
MOST_SHARED = 227 << 10  # bytes of dynamic shared memory that a block of sm_90 can ask for


class Module:
    """A compiled CUDA C++ source.

    sanitize: None; "alignment" reports misaligned accesses; "undefined" also overflows, shifts and indices of arrays
    that C++ leaves undefined; "race" reports accesses to shared memory that nothing orders; "address" needs a process
    started with `address_environment()`.
    Raises CompileError with the compiler's messages, in lines of kernel.cu.
    """

    def __init__(self, code: str, sanitize: str | None = None) -> None:
        self._load(*source.library(code, sanitize), sanitize)

    @classmethod
    def compiled(cls, path: Path, sanitize: str | None = None) -> Module:
        """A module that was compiled before, by its `path`."""
        made = cls.__new__(cls)
        made._load(path, path.with_suffix(".kernels").read_text().split(), sanitize)
        return made

    def _load(self, path: Path, kernels: list[str], sanitize: str | None) -> None:
        self._runtime = native.library()
        self.path, self.kernels, self.sanitize = path, kernels, sanitize
        try:
            self._library = ctypes.CDLL(str(self.path))
        except OSError as error:
            if sanitize != "address":
                raise
            raise EmulatorError("start the process with emulator.address_environment(): " + str(error)) from None
        anchor = self._library.emulated_anchor
        anchor.restype = c_void_p
        before, size = c_uint64(), c_uint64()
        if self._runtime.emulator_segment(anchor(), ctypes.byref(before), ctypes.byref(size)):
            raise EmulatorError("the module's shared memory was not found")
        self._anchor = ctypes.cast(anchor, c_void_p).value
        self._shared = before.value, size.value

    def kernel(self, name: str) -> Kernel:
        """The kernel of this name. Raises UnknownKernel."""
        if name not in self.kernels:
            known = ", ".join(self.kernels) or "none"
            raise UnknownKernel(
                f'no kernel {name!r}: this module has {known}. Kernels are extern "C" __global__ functions'
            )
        return Kernel(self, name)


class Kernel:
    """One kernel of a module."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        library = module._library
        kinds = getattr(library, f"emulated_kinds_{name}")
        kinds.restype = c_char_p
        self._kinds: str = kinds().decode()
        self._packers = [struct.Struct(f"<{kind}") for kind in self._kinds.replace("P", "Q")]
        self._pointers = set(self._kinds) <= {"P"}
        self._words = (c_uint64 * max(1, len(self._kinds)))()
        self._launch = native.Launch(
            entry=ctypes.cast(getattr(library, f"emulated_entry_{name}"), c_void_p).value,
            shared_anchor=module._anchor,
            shared_before=module._shared[0],
            shared_bytes=module._shared[1],
            arguments=ctypes.addressof(self._words),
            races=module.sanitize == "race",
        )
        self._fault = native.Fault()
        self._shapes: set[tuple[Triple, Triple, int]] = set()  # launched before: a launch costs a few microseconds

    def launch(
        self,
        grid: Triple,
        block: Triple,
        args: Sequence[int | float],
        shared_bytes: int = 0,
        seed: int | None = 0,
        workers: int = 1,
        seconds: float = 60.0,
    ) -> None:
        """Runs the kernel to its end.

        grid, block: blocks, and threads a block, along x, y, z. args: one for each parameter: addresses for pointers,
        else numbers. shared_bytes: size of `extern __shared__` memory. seed: draws the order of blocks, warps and
        lanes; None is their natural order. workers: threads that share the blocks; only one makes the order of atomics
        repeatable. seconds: processor time after which a launch counts as one that does not end.
        Raises KernelFault for what the kernel does wrong, ValueError for a launch that a GPU would refuse.
        """
        if (shape := (tuple(grid), tuple(block), shared_bytes)) not in self._shapes:
            check_shape(self.name, *shape)
            self._shapes.add(shape)
        if workers != 1 and self.module.sanitize in ONE_WORKER:
            raise ValueError(f"sanitize={self.module.sanitize!r} runs with one worker")
        if len(args) != len(self._kinds):
            raise ValueError(f"{self.name} takes {len(self._kinds)} arguments, not {len(args)}")
        if self._pointers:
            self._words[: len(args)] = args
        else:
            for i, (packer, value) in enumerate(zip(self._packers, args, strict=True)):
                self._words[i] = int.from_bytes(packer.pack(value), "little")
        launch = self._launch
        launch.grid, launch.block = grid, block
        launch.dynamic_shared_bytes = shared_bytes
        launch.seeded, launch.seed = (0, 0) if seed is None else (1, seed)
        launch.workers, launch.milliseconds = workers, max(1, int(1000 * seconds))
        if self.module._runtime.emulator_launch(launch, self._fault):
            raise self._report()

    def _report(self) -> KernelFault:
        fault = self._fault
        place, exact = places.of_fault(self.module.path, fault)
        return KernelFault(
            self.name,
            places.message(self.module.path, fault),
            place,
            tuple(fault.block),
            tuple(fault.thread),
            not exact,
        )


def check_shape(name: str, grid: Triple, block: Triple, shared_bytes: int) -> None:
    """Raises ValueError for a launch that a GPU would refuse."""
    for what, sizes, most in (("grid", grid, MOST_GRID), ("block", block, MOST_BLOCK)):
        if len(sizes) != 3 or not all(1 <= size <= limit for size, limit in zip(sizes, most, strict=True)):
            raise ValueError(f"{name}: {what} {tuple(sizes)} is not between (1, 1, 1) and {most}")
    if (threads := block[0] * block[1] * block[2]) > MOST_THREADS:
        raise ValueError(f"{name}: a block of {threads} threads; at most {MOST_THREADS} are possible")
    if not 0 <= shared_bytes <= MOST_SHARED:
        raise ValueError(f"{name}: {shared_bytes} bytes of dynamic shared memory; at most {MOST_SHARED} are possible")
