"""Small programs on a device, beside the numpy evaluator in double precision: of the optimised program, so that both
round a cache alike. Several values at once make one translation unit, since compiling takes longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from programs import Program

from briolette.backends.base import Options, TokenRows, checked
from briolette.backends.cuda.compilation import Compilation, compiled, form_of
from briolette.backends.cuda.device import Device
from briolette.backends.cuda.engine import CudaEngine, Loaded
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Node
from briolette.compiler.pipeline import optimise
from briolette.compiler.plan import plan

from devices import opened


class Running:
    """What nodes are after steps of one form: `all` of any number of tokens, `decode` of one.

    weights="packed": products in integers and on tensor cores. sequences: whose rows may come together, in the form
    `batch`.
    """

    def __init__(
        self, p: Program, wanted: Sequence[Node], form: str = "all", device: Device | None = None, **options: object
    ):
        self.p, self.wanted, self.form = p, wanted, form
        self.options = Options(**{"context": 64, "chunk": 32, "weights": "mapped"} | options)
        module = replace(p.module(wanted[0]), outputs=(wanted[0], *wanted))
        self.engine = CudaEngine(Compilation(module), p.weights, self.options, device or opened())
        self.judge = Interpreter(p.decoded, np.float64)
        self.caches: dict[int, dict] = {0: self.judge.planes}
        self.made: dict[str, Loaded] = {}
        self.optimised = {}
        self.module = module

    def loaded(self, form: str) -> Loaded:
        if form not in self.made:
            planned = plan(optimise(self.module, form_of(form, self.options)), self.options.chunk)
            self.made[form] = Loaded(self.engine, compiled({form: planned}, tiles=self.options.weights != "mapped"))
            self.optimised[form] = planned.module
        return self.made[form]

    def step(self, rows: int, start: int = 0, form: str | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Found and exact values of each node, of tokens whose ids are their positions."""
        form = form or self.form
        loaded = self.loaded(form)
        given = checked(range(start, start + rows), start, 1 << 30, self.options)
        self.engine.call(loaded, form, given)
        outputs = self.optimised[form].outputs[1:]
        exact = self.judge.step(outputs, range(start, start + rows), start)
        return [(loaded.value(form, out, rows), np.asarray(one)) for out, one in zip(outputs, exact, strict=True)]

    def batch(self, parts: Sequence[tuple[int, int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens of several sequences in one step: (sequence, start, rows) of each."""
        loaded, outputs = self.loaded("batch"), self.optimised["batch"].outputs[1:]
        spans = [(s, np.arange(start, start + rows, dtype=np.int32)) for s, start, rows in parts]
        positions = np.concatenate([span for _, span in spans])
        slots = np.concatenate([np.full(len(span), s, np.int32) for s, span in spans])
        self.engine.call(loaded, "batch", TokenRows(positions, positions, slots))
        exact = []
        for s, span in spans:
            self.judge.planes = self.caches.setdefault(s, {})
            exact.append(self.judge.step(outputs, span, int(span[0])))
        joined = [np.concatenate(parts) for parts in zip(*exact, strict=True)]
        return [(loaded.value("batch", out, len(positions)), one) for out, one in zip(outputs, joined, strict=True)]


def values(p: Program, wanted: Sequence[Node], rows: int, **how: object) -> list[tuple[np.ndarray, np.ndarray]]:
    """Found and exact values of nodes after one step from nothing."""
    running = Running(p, wanted, **how)
    found = running.step(rows)
    running.engine.close()
    return found


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The norm of the difference over the norm of what is exact."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
