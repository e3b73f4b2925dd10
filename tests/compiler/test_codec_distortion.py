"""What a codec costs: errors of vectors and of inner products, against what theory says exactly."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest

from briolette.compiler.codecs import codec_named, decode, encode, hadamard, signs
from briolette.compiler.codecs.lloyd_max import distortion

BITS = (2, 3, 4, 5, 6, 8)
SIZES = (128, 256, 512)
VALUES = 2**21
HALF_STEP = 2.0**-11  # half of float16's relative step


@lru_cache(maxsize=2)
def directions(size: int, values: int = VALUES) -> np.ndarray:
    """Uniform points on the sphere of radius sqrt(size)."""
    x = np.random.default_rng(0).standard_normal((values // size, size))
    return (x * math.sqrt(size) / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def errors(x: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """The squared error of each vector, relative to its squared length."""
    return np.sum((x - decoded) ** 2, axis=-1) / np.sum(x**2, axis=-1)


def kept(name: str, x: np.ndarray) -> np.ndarray:
    """Encoded and decoded."""
    return decode(codec_named(name), *encode(codec_named(name), x))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", SIZES)
def test_codes_of_directions_have_the_distortion_of_lloyd_and_max(bits, size):
    # With many bits, the few values beyond the last level are much of the error: more are needed to measure it.
    codec, x = codec_named(f"tq{bits}"), directions(size, VALUES if bits < 5 else 4 * VALUES)
    codes, _ = encode(codec, x)
    assert np.mean((codec.table(size)[codes] - x) ** 2) == pytest.approx(distortion(bits, size), rel=0.01)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", SIZES)
def test_a_scale_that_keeps_something_costs_what_it_must(bits, size):
    """With D as for the codes, the decoded length is sqrt(1 - D) before it is corrected, the inner product 1 - D.

    The vector's own length is divided out, so the errors lie up to 1.5 / size + 1 % below.
    """
    least = distortion(bits, size)
    for name, expected in (
        (f"tq{bits}", 2 - 2 * math.sqrt(1 - least)),
        (f"tq{bits}_eden", least / (1 - least)),
    ):
        found = float(np.mean(errors(directions(size), kept(name, directions(size)))))
        assert 1 - 1.5 / size - 0.015 < found / expected < 1.01, name


@lru_cache(maxsize=1)
def pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors with heavy tails, and queries whose cosine with them is 0.5, all rotated."""
    rng = np.random.default_rng(1)
    x = rng.standard_t(3, (VALUES // size, size))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    across = rng.standard_normal(x.shape)
    across -= np.sum(across * x, axis=-1, keepdims=True) * x
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    return hadamard(x).astype(np.float32), hadamard(0.5 * x + math.sqrt(0.75) * across)


def products(size: int, name: str) -> np.ndarray:
    """<q, x'> - <q, x> for `pairs` x and q and what x becomes, x'."""
    turned, query = pairs(size)
    if name.endswith("_raw"):  # the scale is the length, as in the paper
        codec = codec_named(name.removesuffix("_raw"))
        decoded = codec.table(size)[encode(codec, turned)[0]] / math.sqrt(size)
    else:
        decoded = kept(name, turned)
    return np.sum(query * decoded, axis=-1) - 0.5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", SIZES)
def test_inner_products_are_unbiased_in_eden_mode_and_vary_little(bits, size):
    found, least = products(size, f"tq{bits}_eden"), distortion(bits, size)
    assert abs(found.mean()) < 0.001 * 0.5
    rounding = size * 0.5**2 * HALF_STEP**2 / 3  # of the scale to float16, at worst: all of the product moves with it
    assert size * found.var() < 1.05 * least / (1 - least) * (1 - 0.5**2) + rounding


def test_the_scales_compare_as_the_facts_have_it():
    """512 dimensions, 4 bits: bias and variance of inner products with the three scales."""
    figures = {name: products(512, name) for name in ("tq4_raw", "tq4", "tq4_eden")}
    bias = {name: float(f.mean()) for name, f in figures.items()}
    variance = {name: 512 * float(f.var()) for name, f in figures.items()}
    assert bias == pytest.approx({"tq4_raw": -0.0043, "tq4": -0.0024, "tq4_eden": 0}, abs=2e-4)
    assert variance == pytest.approx({"tq4_raw": 0.0125, "tq4": 0.0069, "tq4_eden": 0.0069}, rel=0.05)


def outliers(size: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).standard_normal((256, size)).astype(np.float32)
    kinds = {
        "one channel alone": 1000 * np.eye(size, dtype=np.float32),
        "a fading spectrum": noise * (0.9 ** np.arange(size)).astype(np.float32),
    }
    for count, factor in ((1, 100), (2, 30), (4, 50), (8, 20)):
        kinds[f"{count} channels {factor} times as large"] = noise.copy()
        kinds[f"{count} channels {factor} times as large"][:, :count] *= factor
    return kinds


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_outliers_cost_nothing_once_rotated(bits, size):
    usual = 2 - 2 * math.sqrt(1 - distortion(bits, size))
    for kind, x in outliers(size).items():
        turned = np.mean(errors(x, hadamard(kept(f"tq{bits}", hadamard(x)), inverse=True)))
        assert turned < 1.1 * usual, kind
        assert np.mean(errors(x, kept(f"tq{bits}", x))) > 4 * usual, kind


@pytest.mark.parametrize("bits", BITS)
def test_the_one_vector_that_the_rotation_makes_an_outlier(bits):
    """Rotations that never change have bad vectors: their own signs become a single channel. Length is kept even so."""
    x = signs(256)[None].copy()
    assert np.count_nonzero(np.abs(hadamard(x)) > 1e-4) == 1
    decoded = kept(f"tq{bits}", hadamard(x))
    assert np.linalg.norm(decoded) == pytest.approx(16, rel=1e-3)
    assert errors(hadamard(x), decoded)[0] < 2


@pytest.mark.parametrize(("name", "expected"), [("q8_0", 2.9e-5), ("q4_0", 0.00738)])
def test_the_formats_of_gguf_cost_what_they_cost_on_normal_values(name, expected):
    x = np.random.default_rng(0).standard_normal((VALUES // 256, 256)).astype(np.float32)
    assert np.mean((x - kept(name, x)) ** 2) == pytest.approx(expected, rel=0.02)
