"""LLVM modules to machine code, and machine code to functions that can be called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import llvmlite.binding as llvm

from .target import Target

if TYPE_CHECKING:  # emitting takes a good part of a second to import, and what is kept needs none
    from llvmlite import ir


def compile_object(module: ir.Module, target: Target) -> bytes:
    """Machine code of a module. No IR passes are run: kernels are emitted as they shall be."""
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    code: bytes = target.machine().emit_object(parsed)
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
