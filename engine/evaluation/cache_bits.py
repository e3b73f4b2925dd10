"""Bits of memory that caches take for a value, counted from what is allocated: ours, and llama.cpp's types."""

from __future__ import annotations

from briolette.engine.model import Model

# A block of 32 values, and what it takes: ggml-common.h.
GGML_BITS = {
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}


def bits_of(model: Model) -> float:
    """Of all planes together, against what they would take in f32."""
    memory, options = model.backend.memory, model.options
    planes, whole = (
        sum(plane.bytes for plane in memory(model.module, cache)(options).planes) for cache in (options.cache, "f32")
    )
    return 32.0 * planes / whole


def bits_of_peer(kv: str) -> float | None:
    """The mean of the types of K and V; None where one is not known."""
    found = [GGML_BITS.get(part) for part in kv.split("/")]
    known = [bits for bits in found if bits is not None]
    return sum(known) / len(known) if len(known) == len(found) else None
