"""Codecs of caches."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from briolette.compiler.codecs import codec_named, decode, encode


def heads(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal vectors of very different lengths."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(2 * rng.standard_normal((*shape[:-1], 1)))).astype(np.float32)


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_the_formats_of_gguf_are_its_own_bit_for_bit(name):
    x = heads(500, 256)
    x[0] = 0
    x[1] = np.arange(256) / 2  # ties
    x[2, :32] = -127
    kind = gguf.GGMLQuantizationType[name.upper()]
    raw = gguf.quants.quantize(x, kind)
    codes, scales = encode(codec_named(name), x)
    stored = raw.reshape(500, 8, -1)
    np.testing.assert_array_equal(stored[..., :2].copy().view(np.float16)[..., 0], scales)
    np.testing.assert_array_equal(gguf.quants.dequantize(raw, kind), decode(codec_named(name), codes, scales))
