"""Blame mode: runs the interpreter on both sides of every rewrite and pass, and names the one that changed a value.

optimise(module, form, watcher=Blame(weights, tokens))
front(tree, header, watcher=Blame(weights, tokens))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.labels import shown_labels
from briolette.compiler.rewrite import Watch

RELATIVE, ABSOLUTE = 1e-4, 1e-5
Weight = Callable[[str], np.ndarray]


class Blame:
    """Who watches the pipeline. Raises AssertionError naming the first rule or pass whose result is not what it
    replaced, with the stage, the value by label and spec line, and the fewest tokens that show it."""

    def __init__(self, weights: Mapping[str, np.ndarray] | Weight, tokens: np.ndarray):
        self.weight: Weight = weights if callable(weights) else weights.__getitem__
        self.tokens = tokens
        self.values = Values(self.weight, tokens)

    def __call__(self, stage: str, module: Module) -> Watch:
        def watch(name: str, before: Node, after: Node) -> None:
            if not same(self.values[before], self.values[after]):
                raise AssertionError(self.told(stage, module, name, before, after))

        return watch

    def told(self, stage: str, module: Module, name: str, before: Node, after: Node) -> str:
        for count in range(1, len(self.tokens) + 1):
            values = Values(self.weight, self.tokens[:count])
            old, new = values[before], values[after]
            if not same(old, new):
                break
        shapes = f", {list(old.shape)} to {list(new.shape)}" if old.shape[1:] != new.shape[1:] else ""
        place = where(module, first_wrong(module, before, after, values), values)
        return f"{name} (stage {stage}) changed a value{shapes}: {place}; {count} of {len(self.tokens)} tokens show it"


class Values:
    """What nodes are on some tokens. Nodes are interned, so each is evaluated once however often it is asked for."""

    def __init__(self, weight: Weight, tokens: np.ndarray):
        self.interpreter = Interpreter(weight)
        self.interpreter.tokens = np.asarray(tokens, np.int32)
        self.interpreter.positions = np.arange(len(tokens), dtype=np.int32)
        self.interpreter.sizes = {"T": len(tokens), "C": len(tokens)}
        self.known: dict[Node, np.ndarray] = {}

    def __getitem__(self, item: Node) -> np.ndarray:
        if item not in self.known:
            self.interpreter.evaluate([item], self.known, self.known.__setitem__)
        return self.known[item]

    def within(self, root: Node) -> Iterator[np.ndarray]:
        """Every value that makes up one, those inside of kernels too."""
        for item in topological([root]):
            yield self[item]
            if item.op == "fused":
                given = {param: self[arg] for param, arg in zip(item["block"].params, item.args, strict=True)}
                inside: dict[Node, np.ndarray] = {}
                self.interpreter.evaluate(item["block"].roots, given, inside.__setitem__)
                yield from inside.values()


def same(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two values agree, or the second is the first's last rows: those of the last tokens."""
    if old.shape[1:] != new.shape[1:] or len(old.shape) != len(new.shape):
        return False
    kept = old[len(old) - len(new) :] if old.shape else old
    return kept.shape == new.shape and np.allclose(kept, new, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def first_wrong(module: Module, before: Node, after: Node, values: Values) -> Node:
    """The value that is wrong. Of a pass over the whole graph, which tells its outputs alone: the first of the program
    before that nothing in the program after is."""
    if before not in module.outputs or module.form == "blocks":
        return before
    made = list(values.within(after))
    order = [item for item in topological([before]) if item.args]
    return next((item for item in order if not any(same(values[item], other) for other in made)), before)


def where(module: Module, item: Node, values: Values) -> str:
    """A value by its label and spec lines: a rule's own node may be new, so by the one of the module that equals it."""
    names = shown_labels(module) if module.form == "unrolled" else {}
    equal = [n for n in topological(module.roots) if n is item]
    equal += [n for n in names if n.type == item.type and same(values[n], values[item])]
    known = equal[0] if equal else item
    lines = dict.fromkeys(f"{span.file.rsplit('/', 1)[-1]}:{span.line}" for span in module.origins.get(known, ()))
    shown = f"{names.get(known, known.op)}, {item.op} : {item.type}"
    return f"{shown} ({', '.join(lines)})" if lines else shown
