"""Kernels that turn heads and write codes of them, against the numpy codecs."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from programs import HOST, RUNNABLE
from test_small import Kernel

from briolette.backends.cpu.coded import GROUP, Coded, unpack
from briolette.backends.cpu.kernels.encode import emit_encode, scratch_bytes
from briolette.backends.cpu.kernels.hadamard import emit_hadamard
from briolette.backends.cpu.kernels.small import emit_rotary_first
from briolette.compiler.codecs import codec_named, decode, encode, hadamard
from briolette.compiler.ops import OPS

every_target = pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)
CODECS = ("tq2", "tq3", "tq4", "tq5", "tq6", "tq8", "tq6_128", "tq4_eden", "q8_0", "q4_0")


@every_target
@pytest.mark.parametrize(
    ("size", "block"), [(8, 8), (16, 16), (128, 128), (256, 64), (512, 512), (512, 128), (1024, 1024)]
)
@pytest.mark.parametrize("inverse", [False, True])
def test_rows_are_turned(target, size, block, inverse):
    x = np.random.default_rng(size).normal(size=(5, size)).astype(np.float32)
    found = Kernel(target, emit_hadamard, size, block, inverse).run(np.empty_like(x), x, rows=5, threads=2)
    np.testing.assert_allclose(found, hadamard(x, block, inverse), rtol=0, atol=2e-6)


@every_target
@pytest.mark.parametrize(("size", "pairs", "half"), [(512, 64, 256), (16, 2, 8), (24, 3, 9), (8, 4, 4)])
@pytest.mark.parametrize("how", ["order", "factors", "inverse"])
def test_rotary_dimensions_come_first(target, size, pairs, half, how):
    rng = np.random.default_rng(size)
    x, w = rng.normal(size=(5, 1, size)).astype(np.float32), rng.normal(size=size).astype(np.float32)
    given = (x, w) if how == "factors" else (x,)
    kernel = Kernel(target, emit_rotary_first, size, pairs, half, how == "inverse", how == "factors")
    found = kernel.run(np.empty_like(x), *given, rows=5, threads=2)
    wanted = OPS["rotary_first"].evaluate(None, *given, pairs=pairs, half=half, inverse=how == "inverse")
    assert np.array_equal(found, wanted)


def written(target, codec, x, positions, slots, count, capacity, threads=2):
    """Codes and scales of the planes after heads [T, H, D] have been written: [slots, H, capacity, …]."""
    tokens, heads, size = x.shape
    coded = Coded(codec, size)
    plane = np.zeros((count, heads, coded.ring_bytes(capacity)), np.uint8)
    kernel = Kernel(target, emit_encode, codec, heads, size)
    scratch = np.zeros(scratch_bytes(size), np.uint8)
    kinds = [ctypes.c_void_p] * 3 + [ctypes.c_int64] + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3
    call = ctypes.CFUNCTYPE(None, *kinds)(kernel.engine.get_function_address("kernel"))
    where, of = np.array(positions, np.int32), np.array(slots, np.int32)
    for tid in range(threads):
        pointers = (x.ctypes.data, where.ctypes.data, plane.ctypes.data, capacity, of.ctypes.data)
        call(*pointers, scratch.ctypes.data, tokens, tid, threads)
    return plane


@every_target
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [128, 256])
def test_codes_are_those_of_the_codec(target, name, size):
    rng, codec = np.random.default_rng(3), codec_named(name)
    positions, slots, capacity = [0, 1, 15, 16, 40, 47, 5], [0, 0, 0, 1, 1, 1, 1], 2 * GROUP
    x = (rng.normal(size=(len(slots), 2, size)) * rng.lognormal(size=(len(slots), 2, 1))).astype(np.float32)
    x[2, 1] = 0
    plane = written(target, codec, x, positions, slots, 2, capacity)
    codes, scales = encode(codec, x)
    for token, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        for head in range(2):
            ours, factors = (
                part[position % capacity] for part in unpack(Coded(codec, size), plane[slot, head], capacity)
            )
            assert (ours != codes[token, head]).mean() <= 1 / 128  # a value on a threshold may go either way
            np.testing.assert_allclose(factors, scales[token, head], rtol=2e-3)


def test_small_heads_and_what_was_there_before():
    """Heads of fewer dimensions than share a byte; places that are written again."""
    rng = np.random.default_rng(5)
    for name, size in (("tq3", 8), ("tq5", 16), ("tq6", 32), ("tq2", 4)):
        codec = codec_named(name)
        x = rng.normal(size=(2, 1, size)).astype(np.float32)
        plane = written(HOST, codec, x, [3, 3 + GROUP], [0, 0], 1, GROUP, threads=1)
        codes, scales = unpack(Coded(codec, size), plane[0, 0], GROUP)
        np.testing.assert_allclose(
            decode(codec, codes[3], scales[3]), decode(codec, *encode(codec, x[1, 0])), rtol=2e-3, atol=1e-6
        )
        assert not scales[[0, 1, 2, 4]].any()
