"""The format table against gguf's own decoders."""

from __future__ import annotations

import numpy as np
import pytest

from briolette.backends.formats import BY_GGML, FORMATS, decode, get, row_bytes
from briolette.compiler.errors import BrioletteError

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("name", FORMATS)
def test_the_table_agrees_with_gguf(name):
    kind = gguf.GGMLQuantizationType[name.upper()]
    fmt = FORMATS[name]
    assert BY_GGML[kind.value] is fmt
    assert gguf.GGML_QUANT_SIZES[kind] == (fmt.elements, fmt.bytes)
    assert fmt.fields[-1].end == fmt.bytes


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_decode_is_bit_exact_on_random_bytes(name):
    data = np.random.default_rng(1).integers(0, 256, (3, 7, FORMATS[name].bytes * 40), dtype=np.uint8)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name.upper()])
    found = decode(name, data)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    assert np.array_equal(found.view(np.uint32)[finite], expected.view(np.uint32)[finite])


@pytest.mark.filterwarnings("ignore:overflow")
def test_mxfp4_decodes_every_exponent():
    data = np.full((256, 17), 0x21, dtype=np.uint8)
    data[:, 0] = np.arange(256)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(decode("mxfp4", data), expected)


def test_a_known_q4_0_block():
    scale = np.array([0.5], dtype="<f2").view(np.uint8)
    data = np.concatenate([scale, np.full(16, 0xF8, dtype=np.uint8)])
    assert decode("q4_0", data).tolist() == [0.0] * 16 + [3.5] * 16


def test_decode_takes_views_that_are_not_contiguous():
    data = np.random.default_rng(2).integers(0, 100, (4, 68), dtype=np.uint8)
    assert np.array_equal(decode("q8_0", data[::2, :34]), decode("q8_0", data)[::2, :32])


def test_row_bytes():
    assert row_bytes("q4_k", 512) == 288
    assert row_bytes("f16", 3) == 6


def test_errors_say_what_is_wrong():
    with pytest.raises(BrioletteError, match=r"'q7_z' is not supported; supported are f32, .*mxfp4"):
        get("q7_z")
    with pytest.raises(BrioletteError, match="q6_k rows are made of blocks of 256 elements, and 640 is not"):
        row_bytes("q6_k", 640)
    with pytest.raises(BrioletteError, match="34 bytes"):
        decode("q8_0", np.zeros(33, dtype=np.uint8))
