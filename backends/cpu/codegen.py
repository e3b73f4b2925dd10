"""Machine code function by function, each kept by its own text: a kernel of some shape is compiled once, whatever
programs it is in.

No pass of LLVM's looks at more than one function here (see `jit.compile_text`), so nothing is lost by it.
"""

from __future__ import annotations

import re

from llvmlite import ir

from .jit import compile_text
from .store import kept, text_key
from .target import Target

_NAME = re.compile(r'@(?:"([^"]+)"|([\w.$-]+))')
_METADATA = re.compile(r"!(\d+)")


def compiled(text: str, target: Target, level: int) -> bytes:
    """The object of a function's text, compiled at one of LLVM's levels."""
    return kept(f"{text_key(target, f'{level} {text}')}.o", lambda: compile_text(text, target, level))


def text_of(function: ir.Function) -> str:
    """A module with one function of a module: declarations of those it calls, and what else it refers to."""
    module, function.linkage = function.module, ""  # its callers are elsewhere
    body = str(function)
    names = dict.fromkeys(quoted or plain for quoted, plain in _NAME.findall(body))
    parts = [_told(module.globals[name]) for name in names if name != function.name]
    # Metadata is counted by what came before in the module: here it is counted anew.
    for new, number in enumerate(dict.fromkeys(_METADATA.findall(body))):
        body = body.replace(f"!{number}\n", f"!new{new}\n")
        parts.append(str(module.metadata[int(number)]).replace(f"!{number} =", f"!{new} =", 1))
    return "\n".join([f'target triple = "{module.triple}"', *parts, body.replace("!new", "!")])


def _told(item: ir.Function | ir.GlobalVariable) -> str:
    """A constant, or the declaration of a function."""
    if isinstance(item, ir.Function) and item.blocks:
        item = ir.Function(ir.Module(), item.function_type, item.name)
    return str(item)
