"""Codebooks: against published tables, and against the two conditions of Lloyd and Max on a plain grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from briolette.compiler.codecs.lloyd_max import distortion, levels

NORMAL = 1 << 24  # so many dimensions that a coordinate is normal
# To four digits these are the tables of Max, "Quantizing for minimum distortion", 1960; the rest was computed apart.
CENTROIDS = {
    1: [0.797885],
    2: [0.452780, 1.510418],
    3: [0.245094, 0.756005, 1.343909, 2.151946],
    4: [0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590],
}
THRESHOLDS = {
    2: [0.981599],
    3: [0.500550, 1.049957, 1.747927],
    4: [0.258222, 0.522404, 0.799550, 1.099286, 1.437139, 1.843532, 2.400803],
}
DISTORTIONS = {1: 0.36338, 2: 0.11748, 3: 0.03455, 4: 0.00950, 5: 0.002505, 6: 0.000644}
ON_SPHERES = {  # 128, 256 and 512 dimensions
    1: (0.36089, 0.36214, 0.36276),
    2: (0.11600, 0.11674, 0.11711),
    3: (0.03397, 0.03426, 0.03440),
    4: (0.00932, 0.00941, 0.00945),
}


def on_a_grid(size: int, points: int = 1_000_001) -> tuple[np.ndarray, np.ndarray]:
    """Values of a coordinate of the sphere of radius sqrt(size), and their probabilities, by the midpoint rule."""
    end = min(math.sqrt(size), 9.0)
    edges = np.linspace(-end, end, points)
    y = (edges[1:] + edges[:-1]) / 2
    mass = (1 - y**2 / size) ** ((size - 3) / 2)
    return y, mass / mass.sum()


@pytest.mark.parametrize("bits", CENTROIDS)
def test_levels_are_those_of_the_tables(bits):
    found = levels(bits, NORMAL)
    upper = found[len(found) // 2 :]
    np.testing.assert_array_equal(found, -found[::-1])
    np.testing.assert_allclose(upper, CENTROIDS[bits], atol=1.5e-6)
    np.testing.assert_allclose((upper[1:] + upper[:-1]) / 2, THRESHOLDS.get(bits, []), atol=1.5e-6)


@pytest.mark.parametrize("bits", DISTORTIONS)
def test_distortion_of_normal_values_is_that_of_the_tables(bits):
    assert distortion(bits, NORMAL) == pytest.approx(DISTORTIONS[bits], rel=5e-4)


@pytest.mark.parametrize("bits", ON_SPHERES)
def test_distortion_on_spheres_is_that_of_the_tables(bits):
    found = [distortion(bits, size) for size in (128, 256, 512)]
    np.testing.assert_allclose(found, ON_SPHERES[bits], rtol=1e-3)


@pytest.mark.parametrize("size", [4, 8, 16, 64, 128, 256, 512])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_levels_are_the_means_of_their_cells_and_the_distortion_is_theirs(bits, size):
    found = levels(bits, size)
    assert np.all(np.diff(found) > 0)
    assert found[-1] < math.sqrt(size)
    y, mass = on_a_grid(size)
    cells = np.searchsorted((found[1:] + found[:-1]) / 2, y)
    means = np.bincount(cells, mass * y) / np.bincount(cells, mass)
    np.testing.assert_allclose(found, means, atol=1e-4)  # the grid's own error
    assert distortion(bits, size) == pytest.approx(np.sum(mass * (y - found[cells]) ** 2), rel=1e-3)


def test_every_size_of_a_head_has_its_levels():
    for size in [*range(2, 33), 48, 64, 80, 96, 112, 128, 192, 256, 512, 1024]:
        for bits in range(1, 9):
            assert distortion(bits, size) <= 0.3634  # of one bit, for normal values
            assert distortion(bits, size) < distortion(bits, 2 * size) < math.sqrt(3) * math.pi / 2 * 4.0**-bits


@pytest.mark.parametrize(("bits", "size"), [(0, 128), (4, 1)])
def test_what_has_no_levels_is_refused(bits, size):
    with pytest.raises(ValueError, match=f"no quantiser of {bits} bits in {size} dimensions"):
        levels(bits, size)
