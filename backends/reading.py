"""What backends read off a module, and how they read its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.dims import evaluate
from briolette.compiler.ir import Block, Module, Node, topological
from briolette.compiler.ops import OPS, attributes, with_args
from briolette.compiler.plan import Plan, base, is_view, writes_cache

from . import formats
from .base import Weights
from .planes import CachePlane

P = TypeVar("P", bound=CachePlane)
SEEN_THROUGH = {1: "window", 2: "window", 4: "recent", 5: "recent"}  # operands of attention that are planes


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


def planes_of(plan: Plan, make: Callable[..., P]) -> list[P]:
    """The cache planes a program writes, with the widest window that any attention reads them through; `make` is given
    the fields of `CachePlane`, in order."""
    windows: dict[Node, list[int | None]] = {}
    for step in plan.steps:
        if step.node.op == "attend":
            for place, source in enumerate(step.node.args):
                if place in SEEN_THROUGH:
                    windows.setdefault(base(source), []).append(step.node.get(SEEN_THROUGH[place]))
    found = []
    for step in plan.steps:
        write = writes_cache(step.node)
        if write is not None:
            given = attributes(write)
            seen = windows.get(step.node, [None])
            window = None if None in seen else max(w for w in seen if w is not None)
            _, heads, size = write.shape
            assert isinstance(heads, int) and isinstance(size, int)
            found.append(make(given["slot"], given["plane"], heads, size, write.type.dtype, window, given["sink"]))
    return found


def primitive(block: Block) -> Node:
    """The block's result with compound ops along rows written out in primitive ones."""
    done: dict[Node, Node] = {}
    for item in block.order:
        args = tuple(done[arg] for arg in item.args)
        body = OPS[item.op].body if item.op in ("rms_norm", "softmax") else None
        done[item] = body(*args, **attributes(item)) if body is not None else with_args(item, args)
    return done[block.result]
