"""Blame mode: runs the interpreter on both sides of every rewrite and names the rule that changed a value."""

from __future__ import annotations

import numpy as np

from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Node
from briolette.compiler.rewrite import Rule


class Blame:
    """A `rewrite` watcher. Raises AssertionError naming the first rule whose result is not what it replaced."""

    def __init__(self, weights: dict[str, np.ndarray], tokens: np.ndarray):
        self.weights, self.tokens = weights, tokens

    def value(self, item: Node) -> np.ndarray:
        return Interpreter(self.weights.__getitem__).step([item], self.tokens, 0)[0]

    def __call__(self, rule: Rule, before: Node, after: Node) -> None:
        old, new = self.value(before), self.value(after)
        assert old.shape == new.shape, f"{rule.name} changed a shape: {old.shape} to {new.shape}"
        assert np.allclose(old, new, rtol=1e-4, atol=1e-5), f"{rule.name} changed {before} to {after}"
