"""What backends read off a module, and how they read its weights."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.dims import evaluate
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.plan import base, is_view

from . import formats
from .base import Weights


def token_ids(module: Module) -> int:
    """How many token ids a model knows: the rows of the smallest table that tokens are looked up in."""
    looked_up = (n for n in topological(module.roots) if n.op == "embed" and n.args[1].op == "tokens")
    return min((evaluate(n.args[0].shape[0], {}) for n in looked_up), default=1 << 31)


def stored_bytes(weight: Node) -> int:
    """Bytes of a weight in the block format of the file."""
    *rows, columns = (evaluate(size, {}) for size in weight.shape)
    return formats.row_bytes(weight.type.dtype, columns) * math.prod(rows)


def looked_up(module: Module, elsewhere: Container[str] = ()) -> dict[str, int]:
    """The stored tensors of which only rows are read, by token id, with the bytes of a row.

    `elsewhere` are tensors that have been copied for whatever else reads them.
    """
    readers: dict[Node, set[str]] = {}
    for item in topological(module.roots):
        for source in () if is_view(item) else map(base, item.args):
            if source.op == "weight":
                readers.setdefault(source, set()).add(item.op)
    tables = [w for w, ops in readers.items() if ops == {"embed"} or ("embed" in ops and w["name"] in elsewhere)]
    return {w["name"]: formats.row_bytes(w.type.dtype, evaluate(w.shape[-1], {})) for w in tables}


def vocabulary_of(module: Module) -> int:
    """How many logits a token has."""
    size = module.outputs[0].shape[-1]
    assert isinstance(size, int)
    return size


def array_of(weights: Weights, module: Module, name: str) -> NDArray[Any]:
    """A tensor as float32 in its own shape."""
    info = next(t for t in module.tensors if t.name == name)
    stored = np.ascontiguousarray(weights.stored(name)).reshape(-1)
    width = formats.row_bytes(info.format, info.shape[-1]) if info.shape else stored.size
    return formats.decode(info.format, stored.reshape(-1, width)).reshape(info.shape)
