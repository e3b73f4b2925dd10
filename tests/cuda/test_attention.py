"""Attention and the KV cache: groups, windows and rings, sinks and recent positions, codes, several sequences; row by
row in f32, and many rows at once in f16."""

from __future__ import annotations

import numpy as np
import pytest
from programs import Program, T
from running import Running, error

from briolette.backends.cuda.device import Device
from briolette.backends.cuda.planes import DevicePlane
from briolette.compiler.codecs import codec_named, encode
from briolette.compiler.ir import Node
from briolette.compiler.ops import node

from devices import opened

SCALE = 0.25


def attention(
    p: Program,
    slot: int,
    heads: int,
    groups: int,
    size: int,
    tokens: object,
    value_size: int | None = None,
    **attrs: object,
) -> Node:
    """Heads of queries, keys and values from inputs, through the cache of a layer."""
    value_size = value_size or size
    position = node("position", rows=tokens)

    def made(name: str, count: int, width: int) -> Node:
        x = p.input(f"{name}.{slot}", 200, count * width, tokens=tokens)
        # Not every head has the same size: a scale for each token and a large channel.
        return node("reshape", x, shape=(tokens, count, width))

    q, k, v = made("q", heads, size), made("k", groups, size), made("v", groups, value_size)
    k, v = (node("cache_write", x, position, slot=slot, plane=name) for x, name in ((k, "k"), (v, "v")))
    return node("attend", q, k, v, position, scale=SCALE, **attrs)


def layers(p: Program, tokens: object) -> list[Node]:
    """Heads alone and in groups; a window shorter than a step, one that is not, and none; a softcap; odd sizes."""
    return [
        attention(p, 0, 4, 2, 16, tokens),
        attention(p, 1, 8, 1, 32, tokens, window=9),
        attention(p, 2, 3, 3, 64, tokens, window=40, softcap=5.0),
        attention(p, 3, 4, 1, 128, tokens, value_size=32),
    ]


def walk(cache: str, weights: str, bound: float, device: Device | None = None) -> None:
    """A prompt in steps of other lengths than any tile, then tokens one by one. Codes that are multiplied as bytes, as
    tokens alone do it, are rounded to 127 steps once more: a percent."""
    alone = 3e-2 if weights == "packed" and "tq" in cache else bound
    p = Program(seed=7)
    # The decode form is the same program with one token: its nodes are others.
    many = Running(p, layers(p, T), "all", device, cache=cache, weights=weights, chunk=24, context=96)
    at = 0
    for rows in (21, 24, 5, 1):
        for found, exact in many.step(rows, at):
            assert error(found, exact) <= bound
        at += rows
    for _ in range(2):
        for found, exact in many.step(1, at, "decode"):
            assert error(found, exact) <= alone
        at += 1
    many.engine.close()


@pytest.mark.parametrize(
    ("cache", "weights", "bound"),
    [
        ("f32", "mapped", 2e-6),
        ("f16", "mapped", 2e-6),
        ("f32", "packed", 1e-5),
        ("bf16", "packed", 1e-5),
        ("all=k:tq5,v:tq3;sink=4;recent=8", "mapped", 5e-4),
        ("all=k:tq8,v:tq6_eden;sink=0;recent=0", "packed", 2e-3),
        ("all=k:tq5,v:tq4;sink=16;recent=20", "packed", 2e-3),
        ("all=k:q8_0,v:q4_0;sink=0;recent=11;rotate=off", "packed", 2e-3),
        ("all=k:tq4_32,v:tq2;sink=3;recent=0", "mapped", 5e-4),
    ],
)
def test_prompts_and_tokens(cache, weights, bound):
    if "q8_0" in cache or "_32" in cache:  # blocks of 32 do not fit into smaller heads
        cache = cache.replace("all=", "1-3=")
    walk(cache, weights, bound)


def test_any_order_of_threads():
    walk("all=k:tq6,v:tq3;sink=2;recent=5", "packed", 2e-3, opened(seed=4))


@pytest.mark.parametrize("weights", ["mapped", "packed"])
def test_several_sequences_in_one_step(weights):
    p = Program(seed=8)
    cache = "all=tq6;sink=2;recent=4"
    running = Running(p, layers(p, T)[:3], cache=cache, weights=weights, sequences=3, chunk=24, context=96)
    for parts in (
        [(0, 0, 9), (2, 0, 4), (1, 0, 1)],
        [(1, 1, 7), (0, 9, 1), (2, 4, 12)],
        [(2, 16, 1), (1, 8, 1), (0, 10, 1)],
    ):
        for found, exact in running.batch(parts):
            assert error(found, exact) <= (5e-4 if weights == "mapped" else 3e-2)
    running.engine.close()


def unpacked(plane: DevicePlane, memory: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [heads, capacity, size] and scales [heads, capacity, blocks] of one sequence, as `planes.cuh` tells."""
    codec = codec_named(plane.dtype)
    codes = np.zeros((plane.heads, capacity, plane.size), np.int64)
    scales = []
    for head, ring in enumerate(memory.reshape(plane.heads, -1)):
        at, left = 0, codec.bits
        for bits in codec.planes():
            left -= bits
            words = -(-plane.size * bits // 32)
            rows = ring[at : at + 4 * words * capacity].view(np.uint32).reshape(capacity, words)
            at += 4 * words * capacity
            for d in range(plane.size):
                of_word = d % (32 // bits)
                part = rows[:, d // (32 // bits)] >> (of_word % 4 * 8 + of_word // 4 * bits) & ((1 << bits) - 1)
                codes[head, :, d] |= part.astype(np.int64) << left
        scales.append(ring[at:].view(np.float16).reshape(capacity, -1))
    return codes, np.array(scales)


@pytest.mark.parametrize("name", ["tq2", "tq3", "tq4", "tq5", "tq6", "tq8", "tq6_32", "tq4_eden", "q8_0", "q4_0"])
def test_codes_are_those_of_the_codec(name):
    p = Program(seed=9)
    x = p.input("x", 40, 2 * 128)
    heads = node("reshape", node("mul", x, p.input("size", 40, 1)), shape=(T, 2, 128))
    position = node("position", rows=T)
    k, v = (node("cache_write", heads, position, slot=0, plane=plane) for plane in ("k", "v"))
    q = node("reshape", x, shape=(T, 2, 128))
    wanted = node("attend", q, k, v, position, scale=SCALE)
    running = Running(p, [wanted], cache=f"all={name};sink=0;recent=0;rotate=off", context=64)
    running.step(29)
    (plane, address) = running.engine.planes[0, "k"]
    memory = running.engine.device.read(address, plane.memory(running.options).bytes)
    codes, scales = unpacked(plane, memory, plane.positions(running.options))
    wanted_codes, wanted_scales = encode(codec_named(name), p.exact(heads, 29).astype(np.float32))
    # A value that lies on a threshold may go either way.
    assert (codes[:, :29].transpose(1, 0, 2) != wanted_codes).mean() <= 1 / 1000
    np.testing.assert_allclose(scales[:, :29].transpose(1, 0, 2), wanted_scales, rtol=2e-3)
    running.engine.close()
