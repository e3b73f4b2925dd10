"""Which ops CUDA kernels compute, read off the tables that the fuser and the emitters go by."""

from __future__ import annotations

from briolette.compiler.ops import OPS
from briolette.compiler.rules.fuse import PRODUCTS, ROW_OPS

from .emit import has_kernel
from .expressions import ELEMENTWISE

OWN = "own"


def kernels() -> dict[str, tuple[str, ...]]:
    """Every op that kernels compute, with their families, or OWN where the op is a kernel by itself."""
    found: dict[str, tuple[str, ...]] = {}
    for name, op in OPS.items():
        if name in PRODUCTS:
            found[name] = (PRODUCTS[name],)
        elif "elementwise" in op.traits and name in {*ELEMENTWISE, "softcap"}:
            found[name] = (*PRODUCTS.values(), "rows")
        elif name in ROW_OPS or "effect" in op.traits:
            found[name] = ("rows",) if not has_kernel(name) else ("rows", OWN)
        elif not op.traits & {"leaf", "view", "structure"} and has_kernel(name):
            found[name] = (OWN,)
    return found
