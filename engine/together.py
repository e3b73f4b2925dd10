"""Several programs of one model file, evaluated at once with numpy.

Programs that differ in a few places read the same weights. So they run in step: all their products with one matrix
become a single product of stacked rows, and each tensor is decoded once, used, and dropped. Nodes are
interned, so what programs have in common is one node, computed once, without looking for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Node, topological
from briolette.compiler.ops import OPS, attributes, weight_below

Array = NDArray[Any]
BETWEEN = 2**-20  # of ranks: room for as many matrices between two of the first program's


def stored(item: Node) -> bool:
    """Whether a value is a tensor of the file, or a part of one."""
    return weight_below(item) is not None


class Together:
    """One evaluation: `evaluate` is called once. `threads` of the pool share each product."""

    def __init__(self, interpreter: Interpreter, pool: Executor, threads: int):
        self.interpreter, self.pool, self.threads = interpreter, pool, threads
        self.coming: list[Node] = []  # the matrices that are still wanted, the next one last
        self.decoding: dict[Node, Future[Array]] = {}

    def evaluate(
        self, roots: Sequence[Node], given: Mapping[Node, Array], progress: Callable[[], None] = lambda: None
    ) -> list[Array]:
        """The values of some nodes. `progress` is called after each tensor of `tensors(roots, given)`."""
        order = topological(roots, given)
        values = dict(given)
        readers: dict[Node, list[Node]] = {item: [] for item in order}
        for item in order:
            for arg in dict.fromkeys(item.args):
                readers.get(arg, []).append(item)
        unread = Counter({item: len(found) for item, found in readers.items()}) + Counter(roots)
        missing = {i: len({a for a in i.args if a in readers and not stored(a)}) for i in order if not stored(i)}
        ranks = _ranks(roots, given)
        self.coming = sorted(ranks, key=ranks.__getitem__, reverse=True)
        ready: list[Node] = []
        matrices: dict[Node, list[Node]] = {}  # those that somebody waits for, and who

        def file(item: Node) -> None:
            matrix = _matrix(item)
            if matrix is None:
                ready.append(item)
            else:
                matrices.setdefault(matrix, []).append(item)

        for item, count in missing.items():
            if count == 0:
                file(item)
        while ready or matrices:
            if ready:
                batch = [ready.pop()]
                found = [self.one(batch[0], values)]
            else:  # the first that any program needs: so those ahead wait for the others
                matrix = min(matrices, key=ranks.__getitem__)
                batch = matrices.pop(matrix)
                found = self.batch(batch, matrix, values)
                progress()
            for item, value in zip(batch, found, strict=True):
                values[item] = value
                for reader in readers[item]:
                    missing[reader] -= 1
                    if missing[reader] == 0:
                        file(reader)
                for arg in dict.fromkeys(item.args):
                    unread[arg] -= 1
                    if unread[arg] == 0:
                        values.pop(arg, None)
        return [values[root] for root in roots]

    def batch(self, items: Sequence[Node], matrix: Node, values: Mapping[Node, Array]) -> list[Array]:
        """What reads one matrix: products as one, anything else by itself."""
        decoded = {**values, matrix: self.decoded(matrix)}
        products = [item for item in items if item.op == "linear"]
        found: dict[Node, Array] = {}
        if products:
            inputs = [values[item.args[0]] for item in products]
            rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in inputs])
            ends = np.cumsum([x.size // x.shape[-1] for x in inputs])[:-1]
            made = np.split(self.product(rows, decoded[matrix]), ends)
            found = {
                item: part.reshape(*x.shape[:-1], -1) for item, x, part in zip(products, inputs, made, strict=True)
            }
        return [found[item] if item in found else self.one(item, decoded) for item in items]

    def decoded(self, matrix: Node) -> Array:
        """A matrix, while the next one is being decoded."""
        found = self.decoding.pop(matrix, None) or self.pool.submit(self.decode, matrix)
        if matrix in self.coming:  # else a program fell behind, and this is the second time
            self.coming.remove(matrix)
        if self.coming and self.coming[-1] not in self.decoding:
            self.decoding[self.coming[-1]] = self.pool.submit(self.decode, self.coming[-1])
        return found.result()

    def decode(self, matrix: Node) -> Array:
        (found,) = self.interpreter.evaluate([matrix], {})
        return found

    def product(self, rows: Array, matrix: Array) -> Array:
        """rows @ matrix^T; each thread takes some of the rows."""
        parts = np.array_split(rows, min(self.threads, len(rows)))
        return np.concatenate(list(self.pool.map(lambda part: part @ matrix.T, parts)))

    def one(self, item: Node, values: Mapping[Node, Array]) -> Array:
        args = [values[a] if a in values else self.interpreter.evaluate([a], {})[0] for a in item.args]
        return OPS[item.op].evaluate(self.interpreter, *args, **attributes(item))


def tensors(roots: Sequence[Node], given: Mapping[Node, Array]) -> int:
    """How many matrices the values of some nodes take."""
    return len({matrix for item in topological(roots, given) if (matrix := _matrix(item)) is not None})


def _ranks(roots: Sequence[Node], given: Mapping[Node, Array]) -> dict[Node, float]:
    """The order to take matrices in: the first program's. What only another program reads comes right before what
    follows it there, so that no program falls behind."""
    ranks: dict[Node, float] = {}
    for root in roots:
        read = dict.fromkeys(m for item in topological([root], given) if (m := _matrix(item)) is not None)
        after = float(len(read))
        for place, matrix in reversed(list(enumerate(read))):
            after = ranks.setdefault(matrix, float(place) if root is roots[0] else after - BETWEEN)
    return ranks


def _matrix(item: Node) -> Node | None:
    """The tensor worth reading once for all that read it; vectors are not."""
    if stored(item):
        return None
    return next((arg for arg in item.args if stored(arg) and len(arg.shape) > 1), None)
