"""Codecs of caches: names, GGUF's own quantisation, properties of all vectors, odd vectors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briolette.compiler.codecs import TQ_BITS, codec_named, decode, encode, is_codec
from briolette.compiler.codecs.lloyd_max import distortion
from briolette.compiler.errors import BrioletteError

PLANES = {"tq2": (2,), "tq3": (2, 1), "tq4": (4,), "tq5": (4, 1), "tq6": (4, 2), "tq8": (8,)}
TQ = [*PLANES, "tq4_eden", "tq2_64", "tq6_128_eden"]
GGUF = ["q8_0", "q4_0"]
HALF = 2.0**-11  # the relative error of rounding to float16


def heads(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal vectors of very different lengths."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:-1], 1)))).astype(np.float32)


any_heads = st.builds(heads, st.integers(1, 4), st.sampled_from([32, 64, 128, 256]), seed=st.integers(0, 2**32 - 1))


def by_blocks(x: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return x.reshape(*scales.shape, -1).astype(np.float64)


@pytest.mark.parametrize("name", GGUF)
@pytest.mark.parametrize("seed", range(3))
def test_the_formats_of_gguf_are_its_own_bit_for_bit(name, seed):
    x = heads(500, 256, seed=seed)
    x[0] = 0
    x[1] = np.arange(256) / 2  # ties
    x[2] = -np.arange(256) / 2
    x[3, :32] = -127
    x[4, ::2] *= -1000
    kind = gguf.GGMLQuantizationType[name.upper()]
    stored = gguf.quants.quantize(x, kind).reshape(500, 8, -1)
    codes, scales = encode(codec_named(name), x)
    np.testing.assert_array_equal(stored[..., :2].copy().view(np.float16)[..., 0], scales)
    kept = stored[..., 2:]
    if name == "q8_0":
        wanted = (kept.view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    else:
        wanted = np.concatenate([kept & 15, kept >> 4], axis=-1)
    np.testing.assert_array_equal(wanted.reshape(x.shape), codes)
    decoded = decode(codec_named(name), codes, scales)
    np.testing.assert_array_equal(gguf.quants.dequantize(stored.reshape(500, -1), kind), decoded)


@pytest.mark.parametrize("name", PLANES)
def test_codes_are_cut_into_planes(name):
    codec = codec_named(name)
    assert codec.planes() == PLANES[name]
    assert sum(codec.planes()) == codec.bits


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        *[(f"tq{b}", n, n * b // 8 + 2) for b in (2, 3, 4, 5, 6, 8) for n in (128, 256, 512)],
        ("tq6", 512, 386),
        ("tq4_128", 512, 4 * 66),
        ("tq4_128", 64, 34),  # a head that is smaller than the block is one block
        ("q8_0", 256, 8 * 34),
        ("q4_0", 256, 8 * 18),
    ],
)
def test_a_head_takes_its_codes_and_scales(name, size, expected):
    codec = codec_named(name)
    assert codec.head_bytes(size) == expected
    codes, scales = encode(codec, heads(2, size))
    assert codes.shape == (2, size)
    assert int(codes.max()) < 2**codec.bits
    assert scales[0].nbytes + size * codec.bits // 8 == expected


@pytest.mark.parametrize("name", [*TQ, *GGUF])
@pytest.mark.parametrize("size", [8, 64, 256])
def test_tables_rise_and_thresholds_are_half_way(name, size):
    codec = codec_named(name)
    table, thresholds = codec.table(size), codec.thresholds(size)
    assert (table.dtype, table.shape) == (np.float32, (2**codec.bits,))
    assert (thresholds.dtype, thresholds.shape) == (np.float32, (2**codec.bits - 1,))
    assert np.all(table[:-1] < thresholds)
    assert np.all(thresholds < table[1:])
    np.testing.assert_allclose(thresholds, (table[1:].astype(np.float64) + table[:-1]) / 2, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


def test_the_block_makes_the_table():
    np.testing.assert_array_equal(codec_named("tq4_128").table(512), codec_named("tq4").table(128))
    assert not np.array_equal(codec_named("tq4").table(512), codec_named("tq4").table(128))


@pytest.mark.parametrize("name", TQ)
@given(x=any_heads)
def test_a_code_is_the_nearest_of_the_table(name, x):
    codec = codec_named(name)
    codes, scales = encode(codec, x)
    blocks = by_blocks(x, scales)
    scaled = blocks / np.sqrt(np.mean(blocks**2, axis=-1, keepdims=True))
    distances = np.abs(scaled[..., None] - codec.table(x.shape[-1]))
    found = np.take_along_axis(distances, codes.reshape(scaled.shape)[..., None].astype(int), -1)[..., 0]
    assert np.all(found <= distances.min(axis=-1) + 1e-5)


@pytest.mark.parametrize("name", TQ)
@given(x=any_heads)
def test_a_scale_keeps_the_length_or_the_inner_product(name, x):
    codec = codec_named(name)
    codes, scales = encode(codec, x)
    blocks, decoded = by_blocks(x, scales), by_blocks(decode(codec, codes, scales), scales)
    square = np.sum(blocks**2, axis=-1)
    kept = np.sqrt(np.sum(decoded**2, axis=-1) / square)
    if codec.fit == "eden":
        kept = np.sum(blocks * decoded, axis=-1) / square
    np.testing.assert_allclose(kept, 1, atol=1.01 * HALF)


@pytest.mark.parametrize("name", [*TQ, *GGUF])
@given(x=any_heads, power=st.integers(-4, 8))
def test_powers_of_two_change_scales_alone(name, x, power):
    codec = codec_named(name)
    codes, scales = encode(codec, x)
    again, larger = encode(codec, x * np.float32(2.0**power))
    np.testing.assert_array_equal(codes, again)
    np.testing.assert_allclose(larger.astype(np.float64), scales.astype(np.float64) * 2.0**power, rtol=2 * HALF)


@pytest.mark.parametrize("name", TQ)
@given(x=any_heads)
def test_the_opposite_vector_has_mirrored_codes(name, x):
    codec = codec_named(name)
    codes, scales = encode(codec, x)
    mirrored, same = encode(codec, -x)
    np.testing.assert_array_equal(mirrored, 2**codec.bits - 1 - codes)
    np.testing.assert_array_equal(scales, same)


@pytest.mark.parametrize("name", GGUF)
@given(x=any_heads)
def test_what_was_decoded_is_encoded_as_it_was(name, x):
    codec = codec_named(name)
    codes, scales = encode(codec, x)
    again, same = encode(codec, decode(codec, codes, scales))
    np.testing.assert_array_equal(codes, again)
    np.testing.assert_array_equal(scales, same)


@pytest.mark.parametrize("name", TQ)
@given(x=any_heads)
def test_what_was_decoded_is_encoded_as_it_was_where_nothing_is_cut_off(name, x):
    """A value beyond the last level shortens the decoded vector, so that others may move to the next cell."""
    codec = codec_named(name)
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True))
    codes, scales = encode(codec, np.clip(x, -2.2 * rms, 2.2 * rms))
    again, _ = encode(codec, decode(codec, codes, scales))
    np.testing.assert_array_equal(codes, again)


@pytest.mark.parametrize("name", ["tq3_64", "tq4_128_eden", *GGUF])
@given(x=any_heads)
def test_blocks_and_heads_know_nothing_of_each_other(name, x):
    codec = codec_named(name)
    width = codec.width(x.shape[-1])
    codes, scales = encode(codec, x)
    alone, own = encode(codec, x.reshape(-1, 1, width))
    np.testing.assert_array_equal(codes.reshape(alone.shape), alone)
    np.testing.assert_array_equal(scales.reshape(own.shape), own)


@pytest.mark.parametrize("name", [*TQ, *GGUF])
def test_zero_is_zero(name):
    x = heads(3, 256)
    x[1] = 0
    codes, scales = encode(codec_named(name), x)
    assert not scales[1].any()
    decoded = decode(codec_named(name), codes, scales)
    assert decoded.dtype == np.float32
    assert not decoded[1].any()
    assert np.all(np.isfinite(decoded))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*TQ, *GGUF])
def test_what_is_not_finite_or_has_no_scale_is_seen_or_zero(name):
    x = np.ones((4, 256), dtype=np.float32)
    x[0, 3] = np.nan
    x[1, 3] = np.inf
    x[2] = 1e30  # no float16 is so large
    x[3] = 1e-40  # nor so small
    codes, scales = encode(codec_named(name), x)
    assert np.isnan(scales[0, 0])
    assert not np.isfinite(scales[1, 0])
    assert np.all(np.isinf(scales[2]))
    assert not scales[3].any()
    assert not decode(codec_named(name), codes, scales)[3].any()


@pytest.mark.parametrize(
    "name",
    ["tq7", "tq1", "tq", "tq4_16", "tq4_100", "tq4_0128", "tq4_eden_128", "tq4_", "TQ4", "tq4 ", "q5_0", "f16", ""],
)
def test_unknown_names_are_errors_that_say_which_there_are(name):
    assert not is_codec(name)
    with pytest.raises(BrioletteError) as raised:
        codec_named(name)
    assert str(raised.value) == (
        f"there is no codec `{name}`; there are tq2, tq3, tq4, tq5, tq6, tq8, each with `_128` (a scale for 128 "
        "values: any power of two from 32) or `_eden` or both behind it, and q8_0 and q4_0"
    )


@pytest.mark.parametrize("name", [*TQ, *GGUF, "tq4_32", "tq8_1024_eden"])
def test_a_codec_has_its_name(name):
    assert is_codec(name)
    assert codec_named(name).name == name


@pytest.mark.parametrize(("name", "size", "block"), [("q8_0", 48, 32), ("tq4_64", 96, 64), ("tq4", 1, 1)])
def test_blocks_that_do_not_divide_a_head_are_errors(name, size, block):
    with pytest.raises(
        BrioletteError, match=f"{name} keeps blocks of {block} values, which do not divide a head of {size}"
    ):
        encode(codec_named(name), np.ones((1, size), dtype=np.float32))


@pytest.mark.parametrize("bits", TQ_BITS)
def test_the_page_says_what_codecs_take_and_cost(bits):
    page = (Path(__file__).resolve().parents[2] / "docs" / "kv-cache.md").read_text()
    codec = codec_named(f"tq{bits}")
    cells = [
        f"{codec.head_bytes(size)}, {8 * codec.head_bytes(size) / size:.2f}, {distortion(bits, size):.3g}"
        for size in (128, 256, 512)
    ]
    assert f"| tq{bits} | {' | '.join(cells)} |" in page
