"""LLVM modules to machine code, and machine code to functions that can be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import llvmlite.binding as llvm

from .target import Target

if TYPE_CHECKING:  # emitting takes a good part of a second to import, and what is kept needs none
    from llvmlite import ir


def compile_object(module: ir.Module, target: Target) -> bytes:
    """Machine code of a module. No IR passes are run: kernels are emitted as they shall be."""
    return compile_text(str(module), target)


def compile_text(text: str, target: Target, level: int = 2) -> bytes:
    """The same of a module's text, at one of LLVM's levels of optimisation."""
    parsed = llvm.parse_assembly(text, llvm.create_context())
    parsed.verify()
    code: bytes = target.machine(level).emit_object(parsed)
    return code


class Library:
    """Loaded machine code of objects that may call each other; functions by name. It lives as long as this does."""

    def __init__(self, objects: Sequence[bytes], target: Target):
        self.machine = target.machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self.machine)
        for code in objects:
            self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()

    def address(self, name: str) -> int:
        found: int = self.engine.get_function_address(name)
        assert found, f"no function {name} in the object"
        return found
