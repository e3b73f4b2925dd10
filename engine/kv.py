"""What a KV policy leaves to the model's file: which dimensions of K rotary positions turn."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from briolette.backends.base import Source
from briolette.backends.cpu.store import kept, key_of
from briolette.backends.cpu.target import Target
from briolette.compiler.policy import policy_named

STANDS_STILL = 1e9  # a pair whose frequency is divided by this does not turn by a rounding in a million positions


def settled(kv: str, source: Source, stored: Callable[[str], NDArray[np.uint8]]) -> str:
    """The policy, with the number of pairs that turn where K and V are kept once: the last of a file's frequency
    factors (f32, as GGUF has them) that is not large says it. Raises BrioletteError for what is no policy."""
    policy = policy_named(kv)
    if not policy.once or policy.turning is not None:
        return kv
    names = frequencies(source)
    if not names:
        return kv
    factors = [np.ascontiguousarray(stored(name)).reshape(-1).view(np.float32) for name in names]
    turning = max(int(np.flatnonzero(each < STANDS_STILL).max(initial=-1)) + 1 for each in factors)
    return f"{kv};turning={turning}"


def frequencies(source: Source) -> list[str]:
    """The tensors with frequency factors of layers that could keep K and V once; known from an earlier run, as a preset
    asks for them whatever the model is."""

    def found() -> bytes:
        from briolette.compiler.shared_kv import once

        names = {one.frequencies for one in once(source.module).values() if one.frequencies is not None}
        return json.dumps(sorted(names)).encode()

    name = f"{key_of(Target.host(), ['once', source.key])}.json"
    names: list[str] = json.loads(kept(name, found) if source.key else found())
    return names
