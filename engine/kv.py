"""What a KV policy leaves to the model's file: which dimensions of K rotary positions turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.ir import Module
from briolette.compiler.policy import policy_named
from briolette.compiler.shared_kv import once

STANDS_STILL = 1e9  # a pair whose frequency is divided by this does not turn by a rounding in a million positions


def settled(kv: str, module: Module, stored: Callable[[str], NDArray[np.uint8]]) -> str:
    """The policy, with the number of pairs that turn where K and V are kept once: the last of a file's frequency
    factors (f32, as GGUF has them) that is not large says it. Raises BrioletteError for what is no policy."""
    policy = policy_named(kv)
    if not policy.once or policy.turning is not None:
        return kv
    names = {found.frequencies for found in once(module).values() if found.frequencies is not None}
    if not names:
        return kv
    factors = [np.ascontiguousarray(stored(name)).reshape(-1).view(np.float32) for name in sorted(names)]
    turning = max(int(np.flatnonzero(each < STANDS_STILL).max(initial=-1)) + 1 for each in factors)
    return f"{kv};turning={turning}"
