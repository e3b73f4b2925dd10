"""Signs and the Walsh-Hadamard transform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briolette.compiler.codecs import hadamard, signs
from briolette.compiler.codecs.rotation import splitmix64
from briolette.compiler.errors import BrioletteError


def matrix(size: int) -> np.ndarray:
    """Sylvester's matrix: its entry in row i, column j is -1 to the number of ones in i & j."""
    i = np.arange(size)
    ones = np.array([[bin(a & b).count("1") for b in i] for a in i])
    return (-1.0) ** ones / np.sqrt(size)


def test_the_hash_is_splitmix64_from_seed_0():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert splitmix64(5).tolist() == published


def test_signs_stay_what_they_are():
    assert "".join("-+"[int(s > 0)] for s in signs(16)) == "-++-+++-+-+-----"
    assert signs(512).dtype == np.float32
    np.testing.assert_array_equal(signs(64), signs(512)[:64])
    assert abs(signs(512).sum()) < 3 * np.sqrt(512)


@pytest.mark.parametrize("block", [None, 1, 8, 32, 64])
def test_it_is_the_matrix_after_the_signs(block):
    x = np.random.default_rng(0).standard_normal((3, 2, 64))
    width = block or 64
    wanted = ((x * signs(64)).reshape(3, 2, 64 // width, width) @ matrix(width)).reshape(x.shape)
    np.testing.assert_allclose(hadamard(x, block), wanted, atol=1e-14)


@given(st.sampled_from([1, 2, 8, 64, 512]), st.sampled_from([None, 1, 2, 8]), st.integers(0, 2**32 - 1))
def test_it_keeps_inner_products_and_its_inverse_undoes_it(size, block, seed):
    block = block if block is None or block <= size else size
    x, y = np.random.default_rng(seed).standard_normal((2, 3, size)).astype(np.float32)
    turned = hadamard(x, block)
    assert turned.dtype == np.float32
    np.testing.assert_allclose(hadamard(turned, block, inverse=True), x, atol=1e-5)
    products = np.sum(turned * hadamard(y, block), axis=-1)
    np.testing.assert_allclose(products, np.sum(x * y, axis=-1), atol=2e-6 * size + 1e-5)


def test_what_it_is_given_stays():
    x = np.ones((2, 8), dtype=np.float32)
    hadamard(x)
    hadamard(x, inverse=True)
    assert np.all(x == 1)
    with pytest.raises(ValueError, match="read-only"):
        signs(8)[0] = 2


@pytest.mark.parametrize(
    ("size", "block", "message"),
    [
        (96, None, "needs a power of two, and 96 is none: use a codec without rotation, or blocks of a power of two"),
        (96, 64, "a head of 96 dimensions cannot be rotated in blocks of 64, which do not divide it"),
        (96, 24, "needs a power of two, and 24 is none"),
        (96, 0, "needs a power of two, and 0 is none"),
        (64, 128, "a head of 64 dimensions cannot be rotated in blocks of 128"),
    ],
)
def test_sizes_that_cannot_be_rotated_are_errors(size, block, message):
    with pytest.raises(BrioletteError, match=message):
        hadamard(np.zeros((1, size), dtype=np.float32), block)
