"""Several values of a small program at once: one translation unit for all of them, since compiling takes longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from emulated import EmulatedDevice
from programs import Program

from briolette.backends.base import Options, checked
from briolette.backends.cuda.compilation import Compilation, compiled, form_of
from briolette.backends.cuda.device import Device
from briolette.backends.cuda.engine import CudaEngine, Loaded
from briolette.compiler.ir import Node
from briolette.compiler.pipeline import optimise
from briolette.compiler.plan import plan


def values(
    p: Program,
    wanted: Sequence[Node],
    rows: int,
    device: Device | None = None,
    start: int = 0,
    form: str = "all",
    **options: object,
) -> list[np.ndarray]:
    """What nodes are after a step of `rows` tokens, f32 or i32 in their shapes: of the form `all` any number, of
    `decode` one. weights="packed": products in integers and on tensor cores."""
    given = Options(**{"context": 64, "chunk": 32, "weights": "mapped"} | options)
    module = replace(p.module(wanted[0]), outputs=(wanted[0], *wanted))
    planned = plan(optimise(module, form_of(form, given)), given.chunk)
    engine = CudaEngine(Compilation(module), p.weights, given, device or EmulatedDevice())
    made = compiled({"values": planned}, tiles=given.weights != "mapped")
    loaded = Loaded(engine, made)
    engine.call(loaded, "values", checked(range(start, start + rows), start, 1 << 30, given))
    found = [loaded.value(output, rows) for output in planned.module.outputs[1:]]
    engine.close()
    return found
