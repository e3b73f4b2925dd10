"""The numpy evaluator: what a program means, op by op, in f32 (or f64, where a test wants to know the limit)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .dims import Dim, evaluate
from .ir import Block, Node, topological
from .ops import OPS, Array, attributes

Watch = Callable[[Node, Array], None]


class Interpreter:
    """Evaluates nodes; keeps the KV caches between steps.

    `weight(name)` gives a tensor as `real`, the type of all reals: np.float32 or np.float64. Caches keep
    every position (a sliding window is a mask here), so any backend's ring buffer can be held against them.
    """

    def __init__(self, weight: Callable[[str], Array], real: type[np.floating[Any]] = np.float32):
        self.stored, self.real = weight, real
        self.planes: dict[tuple[int, str], Array] = {}
        self.tokens: Array = np.zeros(0, np.int32)
        self.positions: Array = np.zeros(0, np.int32)
        self.sizes: dict[str, int] = {}  # what T, C and, inside a layer of block form, i are
        self.params: list[Mapping[str, Array]] = []

    def step(self, outputs: Sequence[Node], tokens: Iterable[int], start: int) -> list[Array]:
        """The outputs for tokens at positions start, start + 1, …; caches are extended."""
        self.tokens = np.asarray(list(tokens), np.int32)
        self.positions = np.arange(start, start + len(self.tokens), dtype=np.int32)
        self.sizes = {"T": len(self.tokens), "C": start + len(self.tokens)}
        return self.evaluate(outputs, {})

    def evaluate(self, roots: Sequence[Node], given: Mapping[Node, Array], watch: Watch | None = None) -> list[Array]:
        """The values of some nodes. `watch(node, value)` sees every value on the way.

        What is `given` is not computed, nor what only that needs.
        """
        values = dict(given)
        for item in topological(roots, given):
            args = [values[arg] for arg in item.args]
            values[item] = OPS[item.op].evaluate(self, *args, **attributes(item))
            if watch is not None:
                watch(item, values[item])
        return [values[root] for root in roots]

    # --- what ops ask of their context (`optable.Context`) ---------------------------------------------

    def size(self, dim: Dim) -> int:
        return evaluate(dim, self.sizes)

    def weight(self, name: str) -> Array:
        return self.stored(name.replace("{i}", str(self.sizes["i"])) if "{i}" in name else name)

    def param(self, name: str) -> Array:
        return self.params[-1][name]

    def run(self, block: Block, args: Sequence[Array], layer: int | None = None) -> Array:
        outer = self.sizes
        self.sizes = outer if layer is None else {**outer, "i": layer}
        self.params.append({p["name"]: value for p, value in zip(block.params, args, strict=True)})
        result = self.evaluate(block.roots, {})[-1]
        self.params.pop()
        self.sizes = outer
        return result

    def append(self, slot: Dim, plane: str, x: Array, positions: Array) -> Array:
        at = self.size(slot), plane
        old = self.planes.get(at, np.zeros((0, *x.shape[1:]), self.real))
        size = max(len(old), int(positions.max()) + 1)
        full = np.zeros((size, *x.shape[1:]), self.real)
        full[: len(old)] = old
        full[positions] = x
        self.planes[at] = full
        return full

    def cache(self, slot: Dim, plane: str) -> Array:
        return self.planes[self.size(slot), plane]
