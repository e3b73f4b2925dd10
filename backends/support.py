"""Which ops a backend's kernels compute, read off the tables that the fuser and its emitter go by."""

from __future__ import annotations

from collections.abc import Callable, Container

from briolette.compiler.ops import OPS
from briolette.compiler.rules.fuse import PRODUCTS, ROW_OPS

OWN = "own"


def kernels(has_kernel: Callable[[str], bool], elementwise: Container[str]) -> dict[str, tuple[str, ...]]:
    """Every op that kernels compute, with their families, or OWN where the op is a kernel by itself: by whether there
    is a kernel for an op alone, and which elementwise ops kernels know.

    Ops that are in none must decompose: into the ops of their body, before kernels are made.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, op in OPS.items():
        if name in PRODUCTS:
            found[name] = (PRODUCTS[name],)
        elif "elementwise" in op.traits and name in elementwise:
            found[name] = (*PRODUCTS.values(), "rows")
        elif name in ROW_OPS or "effect" in op.traits:
            found[name] = ("rows",) if not has_kernel(name) else ("rows", OWN)
        elif not op.traits & {"leaf", "view", "structure"} and has_kernel(name):
            found[name] = (OWN,)
    return found
