"""What goes wrong, told in terms of the kernel's source."""

from __future__ import annotations

from dataclasses import dataclass


class EmulatorError(Exception):
    """The emulator itself cannot work: no compiler, no memory, a launch that no GPU would take."""


class CompileError(Exception):
    """The source does not compile. The text is the compiler's, in lines of kernel.cu."""


class UnknownKernel(LookupError):  # noqa: N818
    """No kernel has the name asked for."""


@dataclass(frozen=True)
class Place:
    """A line of a kernel's source, and the function that it is in where that is known."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" in {self.function}" if self.function else "")


class KernelFault(Exception):  # noqa: N818
    """A kernel did what it must not do; the launch ended there, and what it wrote until then stays written.

    kernel: its name; message: what happened; place: where, or None where nothing is known; block and thread: indices
    (x, y, z) of the CUDA thread.
    """

    def __init__(
        self,
        kernel: str,
        message: str,
        place: Place | None,
        block: tuple[int, int, int],
        thread: tuple[int, int, int],
        after: bool = False,
    ) -> None:
        self.kernel, self.message, self.place = kernel, message, place
        self.block, self.thread = block, thread
        where = f"after {place}" if place and after else str(place) if place else "kernel.cu, line unknown"
        super().__init__(f"{kernel}: {where}: {message} (block {block}, thread {thread})")

    @property
    def line(self) -> int | None:
        """The line of the source, or None."""
        return self.place.line if self.place else None
