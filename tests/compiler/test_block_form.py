"""Block form means what its unrolled form means: both run, on every oracle model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from briolette.backends.base import Weights
from briolette.backends.reading import array_of
from briolette.compiler.interp import Interpreter
from briolette.compiler.pipeline import Trace, front
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture

MODELS = sorted((Path(__file__).resolve().parents[1] / "oracle" / "models").glob("*.gguf"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_block_form_and_unrolled_form_agree(path):
    file = open_gguf(path)
    trace = Trace()
    unrolled = front(architecture(None, file.header), file.header, trace)
    blocks = trace.modules["elaborated"]
    weights = Weights(file.tensor_bytes)
    found = []
    for module in (blocks, unrolled):
        interpreter = Interpreter(lambda name, module=module: array_of(weights, module, name))
        first = interpreter.step(module.outputs, [1, 5, 7, 9], 0)[0]
        found.append(np.concatenate([first, interpreter.step(module.outputs, [11], 4)[0]]))
    assert np.array_equal(*found)
