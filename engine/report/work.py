"""What the parts of a step have to do, and the least time that takes under a machine's two ceilings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from briolette.compiler.values import bare, stem

from .ceilings import Machine


@dataclass(frozen=True)
class Work:
    """One op of a step over all layers: operations, and bytes of weights and KV cache.

    Values between ops are left out: a program that fuses well keeps them in the processor's caches.
    """

    block: str
    name: str
    first: str  # the id of an op that it is, to go to
    flops: float
    weights: float
    cache: float

    @property
    def bytes(self) -> float:
        return self.weights + self.cache

    @property
    def intensity(self) -> float:
        """Operations a byte; 0 where no byte moves."""
        return self.flops / self.bytes if self.bytes else 0.0

    def seconds(self, machine: Machine) -> float:
        return machine.seconds(self.flops, self.bytes)


def works(blocks: Iterable[dict[str, Any]], step: str) -> list[Work]:
    """The work of a step, by block of the spec and by tensor: kinds and versions of blocks are added up."""
    sums: dict[tuple[str, str], list[Any]] = {}
    for block in blocks:
        for op in block["ops"]:
            if op["calls"]:
                continue
            flops, weights, cache, _ = op["cost"][step]
            names = [bare(t["name"]) for t in op["tensors"]] if op["op"] in WEIGHTY else []
            into = sums.setdefault((stem(block["name"]), " ".join([op["op"], *names[:1]])), [op["id"], 0.0, 0.0, 0.0])
            for place, part in enumerate((flops, weights, cache), 1):
                into[place] += part
    return [Work(block, name, *parts) for (block, name), parts in sums.items()]


WEIGHTY = frozenset({"linear", "expert_linear", "embed"})  # ops that are told apart by their tensor


def total(parts: Sequence[Work], name: str) -> Work:
    """All of a step as one."""
    return Work(name, name, "", sum(w.flops for w in parts), sum(w.weights for w in parts), sum(w.cache for w in parts))
