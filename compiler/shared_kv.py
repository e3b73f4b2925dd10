"""Where K is V but for a factor and what rotary positions turn, both can be kept once.

A layer without a projection of its own for V takes V from K's: K = rotate(rms(c) * w), V = rms(c). In the dimensions
that are not turned K is w * V, so that a score needs only the turned ones of K beside V. This is seen in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import BrioletteError
from .ir import Module, Node, topological
from .ops import attributes, weight_below


@dataclass(frozen=True)
class Once:
    """A cache slot whose K follows from V: the factors w [D], by name the frequencies that a file has for the pairs of
    dimensions (None: all turn), and how far the two of a pair are apart."""

    factors: Node
    frequencies: str | None
    half: int


def once(module: Module) -> dict[int, Once]:
    """The cache slots of an unrolled module that could keep K and V once."""
    writes: dict[int, dict[str, Node]] = {}
    for item in topological(module.roots):
        if item.op == "cache_write":
            writes.setdefault(item["slot"], {})[item["plane"]] = item.args[0]
    return {slot: found for slot, heads in writes.items() if (found := _once(heads)) is not None}


def _once(heads: Mapping[str, Node]) -> Once | None:
    if not heads.keys() >= {"k", "v"}:
        return None
    k, v = heads["k"], heads["v"]
    if k.op not in ("rope", "rotate") or attributes(k)["interleaved"] or v.op != "rms_norm" or len(v.args) != 1:
        return None
    normed = k.args[0]
    alike = normed.op == "rms_norm" and normed.args[0] is v.args[0] and normed["eps"] == v["eps"]
    if not alike or len(normed.args) != 2:
        return None
    table = k if k.op == "rope" else k.args[1]
    frequencies = weight_below(table.args[-1]) if len(table.args) > (2 if k.op == "rope" else 1) else None
    name = None if frequencies is None else str(frequencies["name"])
    return Once(normed.args[1], name, table["dims"] // 2)


def turning_pairs(found: Once, turning: int | None) -> int:
    """How many pairs of dimensions are turned. `turning`: where a file's frequencies leave the others alone."""
    if found.frequencies is None:
        return found.half
    if turning is None:
        raise BrioletteError(
            f"--kv: which dimensions of K turn is in the file's {found.frequencies}, which is not at hand: say how "
            "many pairs do, as turning=N, which may follow a preset: balanced;turning=64"
        )
    return turning
