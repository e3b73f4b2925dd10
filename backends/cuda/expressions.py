"""Elementwise ops as C++ expressions."""

from __future__ import annotations

from collections.abc import Sequence

from briolette.compiler.ir import Node

from .blocks import number

ELEMENTWISE: dict[str, str] = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "exp": "expf({})",
    "tanh": "tanhf({})",
    "rsqrt": "rsqrt_exact({})",
    "gelu": "gelu({})",
    "silu": "silu({})",
}


def expression(item: Node, operands: Sequence[str]) -> str:
    """The value of an elementwise op, or a constant, from its operands' expressions."""
    if item.op == "const":
        text = number(item["value"])
        return f"({text})" if text.startswith("-") else text
    if item.op == "softcap":
        cap = number(item["cap"])
        return f"({cap} * tanhf({operands[0]} / {cap}))"
    return ELEMENTWISE[item.op].format(*operands)
