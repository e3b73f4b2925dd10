"""Large tensors that are decoded in parts do what whole arrays do."""

from __future__ import annotations

import numpy as np
import pytest
from runs import against, recorded

from briolette.engine.tracing import weights
from briolette.engine.tracing.weights import LargeTensor, products

RNG = np.random.default_rng(0)


def stored(*shape: int) -> tuple[LargeTensor, np.ndarray]:
    """A tensor of f16, and what it is as an array."""
    half = RNG.standard_normal(shape).astype(np.float16)
    rows = half.view(np.uint8).reshape(*shape[:-1], 2 * shape[-1])
    return LargeTensor(rows, "f16", shape[-1]), half.astype(np.float32)


def test_rows_and_slices_are_those_of_the_array() -> None:
    for shape in ((30, 8), (5, 6, 8)):
        large, whole = stored(*shape)
        ids = np.array([[3, 1], [0, 3]])
        assert (large.shape, large.ndim) == (shape, len(shape))
        assert np.array_equal(large[ids], whole[ids])
        assert np.array_equal(large[2], whole[2])
        assert np.array_equal(large[1:4][ids[0, 1]], whole[1:4][1])
    part = large[:, 2:5]
    assert (part.shape, np.array_equal(part[4], whole[4, 2:5])) == ((5, 3, 8), True)


@pytest.mark.parametrize("piece", [8, 56, 10**6])
def test_products_are_made_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(weights, "PIECE", piece)
    large, whole = stored(30, 8)
    x = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    other = RNG.standard_normal((4, 8))
    assert np.allclose(x @ large.T, x @ whole.T, atol=1e-5)
    found = products([x, other, x.astype(np.float64)], large)
    assert [f.dtype for f in found] == [np.float32, np.float64, np.float64]
    for value, given in zip(found, (x, other, x), strict=True):
        assert np.allclose(value, given @ whole.T, atol=1e-5)


def test_long_products_are_made_together_and_short_ones_in_their_own_precision() -> None:
    whole = RNG.standard_normal((700, 600))
    x = RNG.standard_normal((3, 600))
    short = products([x], whole[:100])[0]
    long = products([x], whole.astype(np.float32))[0]
    assert np.array_equal(short, x @ whole[:100].T)
    assert 0 < np.abs(long - x @ whole.T).max() < 1e-3


@pytest.mark.parametrize("name", ["gemma4_e2b", "gemma4_moe", "gemma4_qkv"])
def test_a_comparison_comes_out_alike_with_every_tensor_a_large_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Embeddings, fused and sliced weights, experts."""
    monkeypatch.setattr(weights, "LARGE", 1)
    found = against(name, recorded(name))
    assert found.findings == []
    assert max(row.local for row in found.rows) < 1e-6
