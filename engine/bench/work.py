"""What a step has to do at the very least, and which part of its time that would take at a machine's ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

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


class Step(NamedTuple):
    """What a program runs at once: `tokens` of each of `sequences`, at positions start, start + 1, …"""

    tokens: int
    start: int
    sequences: int = 1


class Works:
    """The work of steps of one planned program; each step's is counted once."""

    def __init__(self, module: Module):
        self.module = module
        self.nodes = topological(module.roots)
        self.steps: dict[Step, Work] = {}

    def of_step(self, step: Step) -> Work:
        """Of a whole step."""
        if step not in self.steps:
            self.steps[step] = sum(self.of_nodes(self.nodes, step), Work())
        return self.steps[step]

    def of_nodes(self, nodes: Sequence[Node], step: Step) -> list[Work]:
        """Of each of some nodes in a step. Weights are read once for all sequences, and of each sequence its cache, up
        to its last token; what the tokens compute is what the one in the middle does, so many times, since each sees
        one position more than the one before."""
        rows, middle = step.tokens * step.sequences, step.start + (step.tokens + 1) // 2
        every = Costs(self.module, element_bytes, rows, middle)
        one = Costs(self.module, element_bytes, step.tokens, step.start + step.tokens)
        return [_work(item, every.of(item), step.sequences * one.of(item).cache) for item in nodes]


def _work(item: Node, every: Cost, cache: float) -> Work:
    macs, moved = every.flops / 2, every.weights + cache
    bits = {attributes(arg)["bits"] for arg in item.args if arg.op == "quantize"}
    if bits:
        return Work(moved, macs, integers=macs * max(bits) / 8)
    return Work(moved, macs, floats=macs)
