"""The layout of coded cache planes: each code and scale lies where the page says, and comes back."""

from __future__ import annotations

import numpy as np
import pytest

from briolette.backends.cpu.coded import GROUP, LINE, UNIT, Coded, coded, pack, unpack, whole_groups
from briolette.compiler.codecs import codec_named

NAMES = ["tq2", "tq3", "tq4", "tq5", "tq6", "tq8", "tq4_128", "tq6_32_eden", "q8_0", "q4_0"]


def random_plane(layout: Coded, heads: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(layout.size)
    codes = rng.integers(0, 2**layout.codec.bits, (heads, capacity, layout.size), dtype=np.uint8)
    return codes, rng.normal(size=(heads, capacity, layout.blocks)).astype(np.float16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 64, 256])
def test_what_is_packed_is_unpacked(name, size):
    layout = Coded(codec_named(name), size)
    codes, scales = random_plane(layout, 3, 48)
    rings = pack(layout, codes, scales)
    assert rings.shape == (3, layout.ring_bytes(48))
    assert layout.ring_bytes(48) % LINE == 0
    found = unpack(layout, rings, 48)
    assert np.array_equal(found[0], codes)
    assert np.array_equal(found[1], scales)


@pytest.mark.parametrize("name", NAMES)
def test_each_code_lies_where_it_should(name):
    """Byte by byte, from the words of the design."""
    layout = Coded(codec_named(name), 64)
    codes, scales = random_plane(layout, 1, 32)
    ring = pack(layout, codes, scales)[0]
    for position, dim in [(0, 0), (5, 13), (17, 63), (31, 32)]:
        (group, t), (unit, i) = divmod(position, GROUP), divmod(dim, UNIT)
        code, start = 0, group * layout.group_bytes
        for bits in layout.codec.planes():
            vector, turn = divmod(unit, 8 // bits)
            byte = int(ring[start + LINE * vector + UNIT * t + i])
            code = code << bits | byte >> bits * turn & (1 << bits) - 1
            start += LINE * -(-layout.units * bits // 8)
        assert code == codes[0, position, dim]
        block = dim // layout.width
        at = 2 * layout.group_bytes + 2 * ((group * layout.blocks + block) * GROUP + t)
        assert ring[at : at + 2].view("<f2")[0] == scales[0, position, block]


def test_bytes_of_a_group():
    """Heads of 256 in 4 bits take 2048 bytes for 16 positions; short heads fill whole vectors."""
    assert Coded(codec_named("tq4"), 256).group_bytes == 16 * 128
    assert Coded(codec_named("tq6"), 512).group_bytes == 16 * 384
    assert Coded(codec_named("tq3"), 16).group_bytes == 2 * LINE
    assert Coded(codec_named("q8_0"), 64).scale_bytes == 2 * 2 * GROUP
    assert [whole_groups(n) for n in (1, 16, 17)] == [16, 16, 32]


def test_what_has_no_such_layout():
    assert coded("bf16", 30) is None
    with pytest.raises(ValueError, match="a head of 30 does not"):
        coded("tq4", 30)
    with pytest.raises(ValueError, match="whole groups of 16 positions, not 20"):
        Coded(codec_named("tq4"), 32).ring_bytes(20)
