"""What commands say of options that do nothing as things are."""

from __future__ import annotations

from .terminal import note


def tell_of_prefill(prefill: str | None, weights: str) -> None:
    """Notes that a fast prefill, if that was asked for, is none where weights, kept as `weights` says, are not
    multiplied in integers."""
    if prefill == "fast" and weights == "mapped":
        note("--prefill fast does nothing here: weights are mapped, and those are multiplied in f32")
