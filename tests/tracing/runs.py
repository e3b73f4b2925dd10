"""Recordings of the oracle models that tests share, and comparisons with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

import briolette
from briolette.compiler.ir import Module
from briolette.compiler.pipeline import front
from briolette.engine.model import Model
from briolette.engine.tracing.case import Case
from briolette.engine.tracing.compare import Tracing, held_against
from briolette.engine.tracing.file import Recording
from briolette.engine.tracing.judge import Judge
from briolette.engine.tracing.measure import floor_of
from briolette.engine.tracing.record import record
from briolette.engine.tracing.replay import replay, upstream
from briolette.engine.tracing.weights import reader
from briolette.spec.syntax import parse

MODELS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "oracle" / "models").glob("*.gguf"))}


def tokens(name: str) -> list[int]:
    """The tokens that transformers was asked with."""
    return [int(t) for t in np.load(MODELS[name].with_suffix(".npz"))["tokens"]]


@cache
def model(name: str, backend: str = "reference", kv: str = "f32") -> Model:
    return briolette.load(MODELS[name], backend=backend, kv=kv, threads=2)


@cache
def recorded(name: str, backend: str = "reference", kv: str = "f32") -> Recording:
    """A complete recording of a model with its shipped spec."""
    return record(model(name, backend, kv), tokens(name))


def against(name: str, reference: Recording, spec: str | None = None, ours: Recording | None = None) -> Tracing:
    """A model, with its shipped spec or another, compared with a reference."""
    known = model(name)
    tree = known.tree if spec is None else parse(spec, "changed.arch")
    module = known.module if spec is None else front(tree, known.header)
    return held_against(known.file, tree, module, reference, ours)


def first_case(name: str, reference: Recording, module: Module | None = None) -> Case:
    """What detectors get to see of the first value that diverges, of the shipped spec or another program."""
    known = model(name)
    module = module or known.module
    weight = reader(known.header.tensors, known.file.tensor_bytes)
    found = replay(module, weight, reference.tokens, reference.named(), floor_of("f32"))
    judge = Judge(known.file, known.tree, module, reference, found, weight)
    row = next(row for row in found.compared if row.diverges)
    stretch = upstream(found, row.node)
    return judge.case(row, judge.culprit(stretch), stretch)
