"""Emitted attention over coded and near planes against decoding everything first and attending in double precision.

What no row sees is poisoned: scales that are NaN, wild codes, NaN in near planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from attention import run
from programs import FEW, HOST, RUNNABLE

from briolette.backends.cpu.build import Target
from briolette.backends.cpu.coded import coded, pack, whole_groups
from briolette.backends.cpu.kernels.attend import Attend
from briolette.compiler.codecs import decode, encode
from briolette.compiler.ops import rounded

CODECS = ["tq2", "tq3", "tq4", "tq5", "tq6", "tq8", "tq4_128", "tq6_32_eden", "q8_0", "q4_0"]
BASE = Attend(8, 2, 64, 64, "tq4", "tq4", 0.125, None, None, 512)


def spec_for(keys: str, values: str, size: int = 64, share: int = 4, groups: int = 2, **how: object) -> Attend:
    heads = share * groups
    return replace(
        BASE,
        heads=heads,
        groups=groups,
        key_size=size,
        value_size=size,
        key_dtype=keys,
        value_dtype=values,
        scale=size**-0.5,
        q_stride=heads * size,
        **how,
    )


@dataclass
class Row:
    """A row's place in a test: its sequence, its position, and what it sees where."""

    slot: int
    position: int
    spec: Attend

    @property
    def first(self) -> int:
        return 0 if self.spec.window is None else max(0, self.position - self.spec.window + 1)

    def near(self) -> np.ndarray:
        """Of positions 0 to its own, those that are read from near planes."""
        j = np.arange(self.position + 1)
        if not self.spec.near:
            return np.zeros(len(j), bool)
        return (j < self.spec.sink) | (j > self.position - self.spec.recent)


def aligned(rings: np.ndarray) -> np.ndarray:
    memory = np.zeros(rings.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    found = memory[start : start + rings.nbytes].view(rings.dtype).reshape(rings.shape)
    found[:] = rings
    return found


def plain(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16 if dtype == "f16" else np.float32)


def main_plane(spec: Attend, dtype: str, size: int, lengths: Sequence[int], seen: Sequence, capacity: int, rng):
    """A plane [slots, groups, capacity, size] as memory holds it, and what it stands for: [slot][position, group, dim].
    seen: positions of each slot that must be there; all others are poison."""
    layout, meant = coded(dtype, size), []
    slots = len(lengths)
    if layout is None:
        ring = np.full((slots, spec.groups, capacity, size), np.nan, np.float32)
    else:
        codes = rng.integers(0, 1 << layout.codec.bits, (slots, spec.groups, capacity, size), dtype=np.uint8)
        scales = np.full((slots, spec.groups, capacity, layout.blocks), np.nan, np.float16)
    for slot, length in enumerate(lengths):
        x = rng.normal(size=(length, spec.groups, size)).astype(np.float32)
        if layout is None:
            x = rounded(x, dtype)
            meant.append(x)
            for p in seen[slot]:
                ring[slot, :, p % capacity] = x[p]
        else:
            found_codes, found_scales = encode(layout.codec, x)
            meant.append(decode(layout.codec, found_codes, found_scales))
            for p in seen[slot]:
                codes[slot, :, p % capacity] = found_codes[p]
                scales[slot, :, p % capacity] = found_scales[p]
    return aligned(plain(ring, dtype) if layout is None else pack(layout, codes, scales)), meant


def near_plane(spec: Attend, size: int, lengths: Sequence[int], seen: Sequence, capacity: int, rng):
    ring = np.full((len(lengths), spec.groups, capacity, size), np.nan, np.float32)
    meant = []
    for slot, length in enumerate(lengths):
        x = rounded(rng.normal(size=(length, spec.groups, size)).astype(np.float32), "bf16")
        meant.append(x)
        for p in seen[slot]:
            place = p if p < spec.sink else spec.sink + (p - spec.sink) % (capacity - spec.sink)
            ring[slot, :, place] = x[p]
    return plain(ring, "bf16"), meant


def check(
    spec: Attend,
    target: Target,
    positions: Sequence[int],
    threads: int = 1,
    seed: int = 0,
    slots: Sequence[int] | None = None,
    capacity: int | None = None,
    bound: float = 1e-5,
) -> np.ndarray:
    """One step of rows at `positions` of sequences `slots`; each sequence's are contiguous, or are single rows."""
    rng = np.random.default_rng(seed)
    slots = [0] * len(positions) if slots is None else slots
    rows = [Row(slot, position, spec) for slot, position in zip(slots, positions, strict=True)]
    count = max(slots) + 1
    lengths = [max((r.position + 1 for r in rows if r.slot == slot), default=1) for slot in range(count)]
    main, near = [set() for _ in lengths], [set() for _ in lengths]
    for row in rows:
        is_near, j = row.near(), np.arange(row.position + 1)
        main[row.slot] |= set(j[(j >= row.first) & ~is_near].tolist())
        near[row.slot] |= set(j[(j >= row.first) & is_near].tolist())
    capacity = whole_groups(max(lengths)) if capacity is None else capacity
    longest = max(slots.count(slot) for slot in set(slots)) if isinstance(slots, list) else len(rows)
    near_capacity = spec.sink + spec.recent + longest

    planes, meant = [], []
    for size, dtype in ((spec.key_size, spec.key_dtype), (spec.value_size, spec.value_dtype)):
        memory, of_main = main_plane(spec, dtype, size, lengths, main, capacity, rng)
        beside, of_near = near_plane(spec, size, lengths, near, near_capacity, rng)
        planes.append((memory, beside))
        meant.append((of_main, of_near))
    q = rng.normal(size=(len(rows), spec.q_stride)).astype(np.float32)
    heads = q[:, : spec.heads * spec.query_size].reshape(len(rows), spec.heads, spec.query_size).astype(np.float64)

    expected = np.empty((len(rows), spec.heads, spec.value_size))
    for i, row in enumerate(rows):
        is_near = row.near()[:, None, None]
        k, v = (
            np.where(is_near, of_near[row.slot][: row.position + 1], of_main[row.slot][: row.position + 1])
            for of_main, of_near in meant
        )
        if spec.shared:
            k = np.concatenate([k, v[..., spec.key_size :]], axis=-1)
        for h in range(spec.heads):
            g = h // spec.share
            s = k[row.first :, g].astype(np.float64) @ heads[i, h] * spec.scale
            if spec.softcap is not None:
                s = np.tanh(s / spec.softcap) * spec.softcap
            e = np.exp(s - s.max())
            expected[i, h] = e / e.sum() @ v[row.first :, g]

    (k, near_k), (v, near_v) = planes
    given = (q, [k, v], capacity, np.array(positions, np.int32), np.array(slots, np.int32), threads)
    out = run(spec, target, *given, [near_k, near_v], near_capacity)
    assert np.abs(out - expected).max() <= bound * np.abs(expected).max()
    return out


def same_for_threads(spec: Attend, positions: Sequence[int], counts: Sequence[int], **how: object) -> None:
    found = [check(spec, HOST, positions, threads, **how) for threads in counts]
    for other in found[1:]:
        assert np.array_equal(found[0], other)


@pytest.mark.parametrize("target", RUNNABLE.values(), ids=RUNNABLE)
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec, target):
    """A row alone, and a run; the run's positions begin within a group, and its sequence is no whole tiles."""
    spec = spec_for(codec, codec)
    check(spec, target, [70])
    check(spec, target, range(37, 80))


@pytest.mark.parametrize("size", [16, 32, 128, 256, 512])
@pytest.mark.parametrize("codec", ["tq3", "tq4", "tq6", "tq8"])
def test_sizes_of_heads(codec, size):
    spec = spec_for(codec, codec, size, share=2, groups=1)
    check(spec, HOST, [130])
    check(spec, HOST, range(90, 131), threads=2)


@pytest.mark.parametrize("target", FEW.values(), ids=FEW)
@pytest.mark.parametrize("share", range(1, 9))
def test_heads_of_a_group(share, target):
    spec = spec_for("tq4", "tq6", 32, share=share)
    check(spec, target, [100])
    check(spec, target, range(40, 70))


@pytest.mark.parametrize("pair", [("tq4", "f16"), ("f32", "tq5"), ("tq6", "tq3"), ("bf16", "q4_0"), ("q8_0", "f32")])
@pytest.mark.parametrize("target", FEW.values(), ids=FEW)
def test_each_plane_has_a_codec_of_its_own(pair, target):
    spec = spec_for(*pair)
    check(spec, target, [77])
    check(spec, target, range(50, 78))
    check(replace(spec, window=30), target, [200], capacity=48)


@pytest.mark.parametrize("codec", ["tq4", "tq6", "q8_0"])
@pytest.mark.parametrize("capacity", [32, 48, 80, 144])
def test_rings_and_windows(codec, capacity):
    """Wherever a ring begins; windows are cut off within groups."""
    spec = spec_for(codec, codec, 32, window=capacity - 13)
    for p in (0, 5, capacity - 1, capacity, 3 * capacity + capacity // 3):
        check(spec, HOST, [p], 2, p, capacity=capacity)
        check(spec, HOST, range(p, p + 9), 2, p, capacity=capacity)


@pytest.mark.parametrize("softcap", [5.0, 30.0])
def test_softcap(softcap):
    check(spec_for("tq4", "tq4", softcap=softcap), HOST, [40])
    check(spec_for("tq4", "tq4", softcap=softcap), HOST, range(30, 50))


@pytest.mark.parametrize("codec", ["tq4", "tq5", "tq8"])
def test_any_number_of_threads(codec):
    """The same bits."""
    spec = spec_for(codec, codec)
    same_for_threads(spec, [900], [1, 2, 5, 64])
    same_for_threads(replace(spec, sink=4, recent=30), [900], [1, 2, 5, 64])
    same_for_threads(spec, range(30, 63), [1, 2, 5])


def test_several_sequences():
    for codec in ("tq4", "q8_0"):
        spec = spec_for(codec, codec, 32, groups=3)
        positions, slots = [5, 700, 3, 64, 65, 66, 1, 350], [3, 0, 1, 2, 2, 2, 5, 4]
        check(spec, HOST, positions, 3, 1, slots)
        check(replace(spec, sink=3, recent=20), HOST, positions, 3, 1, slots)


NEAR = [(0, 1), (4, 0), (4, 16), (16, 128), (1, 63), (0, 5)]


@pytest.mark.parametrize("target", FEW.values(), ids=FEW)
@pytest.mark.parametrize(("sink", "recent"), NEAR)
@pytest.mark.parametrize("keys", ["tq4", "q8_0", "bf16"])
def test_near_planes(keys, sink, recent, target):
    """Rows that see only sinks, only near planes, both; items at the border read some positions from both."""
    spec = spec_for(keys, "tq6", 32, share=2, sink=sink, recent=recent)
    for p in (0, sink, sink + recent, 200):
        check(spec, target, [p], 2, p)
        check(spec, target, range(p, p + 40), 2, p)


@pytest.mark.parametrize("window", [3, 20, 50, 100])
def test_near_planes_and_windows(window):
    """Windows that end among the recent positions, among the coded ones, among the sinks."""
    spec = spec_for("tq4", "tq4", 32, share=2, sink=8, recent=24, window=window)
    for p in (2, 30, 52, 103, 300):
        check(spec, HOST, [p], 2, p)
        check(spec, HOST, range(p, p + 40), 2, p)


ONCE = [("tq4_32", "tq6_32", 32, 96), ("f32", "tq8_32", 32, 64), ("tq6_32", "bf16", 32, 50)]


@pytest.mark.parametrize(("keys", "values", "first", "size"), ONCE)
def test_keys_that_go_on_in_values(keys, values, first, size):
    """K and V kept once: alone, in runs, in several sequences; near planes, windows, round the ring."""
    spec = replace(spec_for(keys, values, size, share=3, shared=True), key_size=first)
    near = replace(spec, sink=3, recent=20, softcap=5.0)
    check(spec, HOST, [130])
    check(spec, HOST, range(37, 80), 2)
    check(near, HOST, [5, 300, *range(30, 75), 1], 3, 1, [3, 0, *[1] * 45, 2])
    check(replace(spec, window=30), HOST, [200], capacity=48)


def test_a_quarter_of_a_head_of_512_beside_values():
    spec = replace(spec_for("tq4_128", "tq6_128", 512, share=8, groups=1, shared=True), key_size=128)
    for each in (spec, replace(spec, key_dtype="f16", value_dtype="f16")):
        check(each, HOST, [150], 2)
        check(each, HOST, range(70, 110), 2)


def test_chunks_do_not_matter():
    """A prompt in chunks of any size: each row reads every position from the same planes."""
    spec = spec_for("tq4", "tq4", 32, share=2, groups=1, sink=4, recent=16)
    for chunk in (1, 7, 33, 100):
        for start in range(0, 100, chunk):
            check(spec, HOST, range(start, min(100, start + chunk)), 2, start)


def test_scattered_rows_of_a_sequence():
    """Rows of a run may come in any order."""
    spec = spec_for("tq4", "tq4", 32, sink=4, recent=16)
    order = np.random.default_rng(0).permutation(np.arange(50, 110))
    check(spec, HOST, order.tolist(), 2)
