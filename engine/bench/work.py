"""What a step has to do at the very least, and which part of its time that would take at a machine's ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from briolette.backends.cpu.ceilings import Ceilings
from briolette.backends.formats import element_bytes
from briolette.compiler.cost import Cost, Costs
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.ops import attributes


@dataclass(frozen=True)
class Work:
    """Bytes of weights and KV cache that have to be read or written; multiply-adds, as the model means them; and how
    the processor makes them: multiply-adds of bytes (two for an activation of 16 bits) and of floats."""

    bytes: float = 0.0
    macs: float = 0.0
    integers: float = 0.0
    floats: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, count: float) -> Work:
        """So many of them."""
        return Work(*(count * part for part in astuple(self)))

    def read_seconds(self, ceilings: Ceilings) -> float:
        """The least time that the bytes take."""
        return self.bytes / ceilings.read

    def arithmetic_seconds(self, ceilings: Ceilings) -> float:
        """The least time that the multiply-adds take."""
        return self.integers / ceilings.integers + self.floats / ceilings.floats


class Works:
    """The work of steps of one planned program; each step's is counted once."""

    def __init__(self, module: Module):
        self.module = module
        self.nodes = topological(module.roots)
        self.steps: dict[tuple[int, int], Work] = {}

    def of_step(self, tokens: int, start: int) -> Work:
        """Of a whole step of tokens at positions start, start + 1, …"""
        if (tokens, start) not in self.steps:
            self.steps[tokens, start] = sum(self.of_nodes(self.nodes, tokens, start), Work())
        return self.steps[tokens, start]

    def of_nodes(self, nodes: Sequence[Node], tokens: int, start: int) -> list[Work]:
        """Of each of some nodes in such a step. The cache is read up to its last token; what the tokens compute is
        what the one in the middle does, so many times, since each sees one position more than the one before."""
        last = Costs(self.module, element_bytes, tokens, start + tokens)
        middle = Costs(self.module, element_bytes, tokens, start + (tokens + 1) // 2)
        return [_work(item, last.of(item), middle.of(item)) for item in nodes]


def _work(item: Node, last: Cost, middle: Cost) -> Work:
    macs, moved = middle.flops / 2, last.weights + last.cache
    bits = {attributes(arg)["bits"] for arg in item.args if arg.op == "quantize"}
    if bits:
        return Work(moved, macs, integers=macs * max(bits) / 8)
    return Work(moved, macs, floats=macs)
