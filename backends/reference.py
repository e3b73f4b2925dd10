"""The reference backend: the numpy evaluator over the op table. Slow, plain, in f32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from briolette.compiler.errors import BrioletteError
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module
from briolette.compiler.ops import OPS
from briolette.compiler.pipeline import Form, optimise

from .base import F32Array, Options, Weights, array_of, checked, token_ids

name = "reference"
ops = frozenset(OPS)


class ReferenceEngine:
    """Runs the optimised program through `compiler.interp`. Weights are dequantised once, on first use."""

    def __init__(self, module: Module, weights: Weights, options: Options):
        self.module, self.options = module, options
        arrays: dict[str, F32Array] = {}

        def weight(name: str) -> F32Array:
            if name not in arrays:
                arrays[name] = array_of(weights, module, name)
            return arrays[name]

        self.interpreter = Interpreter(weight)
        self.programs: dict[str, Module] = {}
        self.token_ids, self.closed = token_ids(module), False

    def step(self, tokens: Sequence[int], start: int, logits: str = "last") -> F32Array:
        """See `base.Engine.step`."""
        if self.closed:
            raise BrioletteError("this engine has been closed")
        ids = checked(tokens, start, self.token_ids, self.options.context)
        if logits not in self.programs:
            self.programs[logits] = optimise(self.module, Form(logits=logits, cache=self.options.cache))
        found = self.interpreter.step(self.programs[logits].outputs, ids, start)[0]
        return np.asarray(found, np.float32)

    def rewindable(self, end: int, to: int) -> bool:
        """Always: the evaluator keeps every position."""
        return to <= end

    def close(self) -> None:
        self.interpreter.planes.clear()
        self.closed = True


def compile(module: Module, weights: Weights, options: Options) -> ReferenceEngine:
    """An engine for the unrolled module."""
    return ReferenceEngine(module, weights, options)
