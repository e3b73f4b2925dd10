"""Which ops CUDA kernels compute."""

from __future__ import annotations

from .. import support
from .emit import has_kernel
from .expressions import ELEMENTWISE


def kernels() -> dict[str, tuple[str, ...]]:
    """See `backends.support.kernels`."""
    return support.kernels(has_kernel, {*ELEMENTWISE, "softcap"})
