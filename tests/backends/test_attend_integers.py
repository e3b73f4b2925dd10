"""Attention's products in integers against decoding everything first and attending in double precision.

Rows alone are what they are for; what no row sees is poisoned, as in `test_attend_codes`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attention import run
from programs import HOST, RUNNABLE
from test_attend_codes import Attend, aligned, check, spec_for

import briolette
from briolette.backends.cpu.coded import coded, pack
from briolette.backends.cpu.kernels.levels import digits_of
from briolette.compiler.codecs import decode, encode

MODEL = Path(__file__).parents[1] / "oracle" / "models" / "llama_scaled.gguf"

CODECS = ["tq2", "tq3", "tq4", "tq5", "tq6", "tq8", "tq4_128", "tq6_32_eden", "q8_0", "q4_0"]
COARSE = 2e-2  # of 8 bits, relative to the largest value
FINE = {"tq2": 2e-3, "tq3": 5e-3, "tq8": 1e-3, "q8_0": 2e-4, "q4_0": 2e-4}  # of 16 bits, where levels are as fine
OLD = {name: target for name, target in RUNNABLE.items() if name in ("sse2", "ssse3", "avx2")}


def integers(codec: str, size: int = 64, share: int = 4, queries: int = 8, weights: int = 8, **how: object) -> Attend:
    """With weights of 16 bits where scales have signs of their own."""
    spec = spec_for(codec, codec, size, share, **how)
    return replace(spec, query_bits=queries, weight_bits=16 if codec == "q4_0" else weights)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec):
    """8 bits, and 16, which are as fine as levels are."""
    check(integers(codec, 128, 2, groups=1), HOST, [300], bound=COARSE)
    check(integers(codec, 128, 2, 16, 16, groups=1), HOST, [300], bound=FINE.get(codec, COARSE))


def test_large_heads():
    for codec, size, share in (("tq3", 256, 4), ("tq4", 512, 8), ("tq8", 512, 8)):
        check(integers(codec, size, share, groups=1), HOST, [300], bound=COARSE)


@pytest.mark.parametrize("share", [1, 3, 5, 6, 7, 8])
def test_heads_of_a_group(share):
    check(integers("tq5", 32, share), HOST, [100], bound=COARSE)


@pytest.mark.parametrize("target", OLD.values(), ids=OLD)
def test_older_machines(target):
    for keys, values, queries, weights in (("tq3", "tq8", 8, 16), ("tq8", "q4_0", 16, 16), ("q8_0", "tq6", 8, 8)):
        spec = spec_for(keys, values, 32, share=3, groups=1)
        check(replace(spec, query_bits=queries, weight_bits=weights), target, [150], bound=COARSE)


def test_queries_and_weights_each_for_themselves():
    """The other plane in f32, of numbers or of codes."""
    for keys, values, queries, weights in (("tq4", "f16", 8, 0), ("bf16", "tq5", 0, 8), ("tq3", "tq6", 16, 0)):
        spec = replace(spec_for(keys, values, 64), query_bits=queries, weight_bits=weights)
        check(spec, HOST, [77], bound=COARSE)


@pytest.mark.parametrize("capacity", [48, 144, 320])
def test_rings_and_windows(capacity):
    """Wherever a ring begins; windows are cut off within groups."""
    spec = integers("tq4", 32, window=capacity - 13)
    for p in (0, 5, capacity - 1, capacity, 3 * capacity + capacity // 3):
        check(spec, HOST, [p], 2, p, capacity=capacity, bound=COARSE)


@pytest.mark.parametrize(("sink", "recent"), [(4, 0), (16, 128), (0, 5)])
def test_near_planes(sink, recent):
    spec = integers("tq4", 32, 2, sink=sink, recent=recent)
    for p in (0, sink, sink + recent, 200):
        check(spec, HOST, [p], 2, p, bound=COARSE)
        check(replace(spec, window=100), HOST, [p], 2, p, bound=COARSE)


def test_softcap_and_several_sequences():
    """Rows that are not alone are still made in f32."""
    spec = integers("tq6", 32, groups=3, softcap=5.0)
    positions, slots = [5, 700, 3, 64, 65, 66, 1, 350], [3, 0, 1, 2, 2, 2, 5, 4]
    check(spec, HOST, positions, 3, 1, slots, bound=COARSE)
    check(spec, HOST, range(30, 50))


@pytest.mark.parametrize("codec", ["tq4", "q8_0"])
def test_any_number_of_threads(codec):
    """The same bits."""
    for spec in (integers(codec), integers(codec, queries=16, weights=16, sink=4, recent=30)):
        found = [check(spec, HOST, [900], threads, bound=COARSE) for threads in (1, 2, 5, 64)]
        assert all(np.array_equal(found[0], other) for other in found[1:])


def test_zeros_and_huge_values():
    """Queries, keys and values of nothing but zeros, and those whose scores and sums come near the ends of f32."""
    for spec in (integers("tq4", 32), integers("q8_0", 32, queries=16, weights=16)):
        layout = coded(spec.key_dtype, 32)
        x = np.random.default_rng(0).normal(size=(spec.groups, 48, 32)).astype(np.float32)
        codes, scales = encode(layout.codec, x)
        q = np.random.default_rng(1).normal(size=(1, spec.q_stride)).astype(np.float32)
        plane, zeros, large = (
            aligned(pack(layout, codes, s.astype(np.float16))) for s in (scales, 0 * scales, scales * 1e4)
        )

        def attended(q, k, v, spec=spec):
            return run(spec, HOST, q, [k, v], 48, np.array([47], np.int32), np.array([0], np.int32), 1)

        usual, mean = attended(q, plane, plane), decode(layout.codec, codes, scales).mean(axis=1)
        for alike in (attended(0 * q, plane, plane), attended(q, zeros, plane)):  # all positions count the same
            of_groups = alike.reshape(spec.groups, spec.share, 32)
            assert np.abs(of_groups - mean[:, None]).max() <= COARSE * np.abs(mean).max()
        assert not attended(q, plane, zeros).any()
        assert np.allclose(attended(q, plane, large), 1e4 * usual, rtol=1e-2, atol=1e2)
        assert np.allclose(attended(q * 1e-34, large, plane), attended(0 * q, plane, plane), atol=1e-5)
        first = attended(q * 1e25, plane, plane)  # the largest score alone counts
        assert np.isfinite(first).all()
        assert np.isnan(attended(q * np.nan, plane, plane)).all()


@pytest.mark.parametrize(
    ("kv", "weights", "bits"),
    [
        ("all=k:tq8,v:q4_0", "packed", (16, 16)),
        ("all=k:tq6,v:tq8", "packed", (8, 8)),
        ("all=k:f16,v:tq3", "packed", (0, 8)),
        ("bf16", "packed", (0, 0)),
        ("all=k:tq6,v:tq8", "mapped", (0, 0)),
    ],
)
def test_what_an_engine_takes(kv, weights, bits):
    """By the codes of each plane, where products with weights are in integers too."""
    model = briolette.load(MODEL, kv=kv, weights=weights, context=64)
    nodes = [step.node for step in model.engine.plan("decode").steps if step.node.op == "attend"]
    assert {(item.get("query_bits", 0), item.get("weight_bits", 0)) for item in nodes} == {bits}


def test_a_model_with_them():
    """A token after a prompt: other bits than in f32, but not by more than rounding."""
    ids = np.random.default_rng(1).integers(3, 60, 42).tolist()
    found = []
    for weights in ("mapped", "packed"):
        engine = briolette.load(MODEL, kv="all=tq4;sink=2;recent=5", weights=weights, context=64, threads=2).engine
        engine.step(ids[:-1], 0)
        found.append(engine.step(ids[-1:], len(ids) - 1)[0])
    assert 0 < np.linalg.norm(found[0] - found[1]) < 5e-2 * np.linalg.norm(found[0])


def test_digits():
    """They add up, and each fits into a byte."""
    for signed, ends in ((True, (-128, 127)), (False, (0, 255))):
        for value in [*range(-32639, 32640, 7), 32639]:
            high, low = digits_of(value, 2, signed)
            assert 256 * high + low == value
            assert ends[0] <= low <= ends[1]
            assert -128 <= high <= 127
