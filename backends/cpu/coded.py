"""How memory keeps a cache plane of codes: which bytes hold a position's code and scale. Data, no kernels.

The plane of K or V has a *ring* for each sequence and head: `[codes of all groups][scales]`. A *group* is 16 positions.
A *unit* of a group is 4 consecutive dimensions of them, 64 codes: byte 4 t + i is dimension 4 u + i of position t, so
that position t lies in lane t of 16 32-bit lanes. A code is cut into bit planes, high bits first, and a bit plane of
width b keeps the units of a group, 8 / b of them in a vector of 64 bytes: unit u lies in vector u // (8 / b), in the
bits from b (u % (8 / b)) of each byte. Scales are float16 [capacity / 16][blocks][16 positions].

Rings begin at multiples of 64 bytes, and so does everything in the codes. Memory starts as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.codecs import Codec, codec_named

GROUP = 16  # positions
UNIT = 4  # dimensions
LINE = 64  # bytes of a vector of a bit plane: a byte for each value of a unit
SCALES = 2 * GROUP  # bytes of the scales of a group's block

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]


def whole_groups(positions: int) -> int:
    """The capacity of a plane of codes that is to hold so many positions."""
    return -(-positions // GROUP) * GROUP


@dataclass(frozen=True)
class BitPlane:
    """Bits `shift` to `shift + bits` of the codes of a group."""

    bits: int
    shift: int
    offset: int  # bytes from where the group begins
    vectors: int

    @property
    def together(self) -> int:
        """Units in a vector."""
        return 8 // self.bits

    def place(self, unit: int) -> tuple[int, int]:
        """Where a unit lies: bytes from where the group begins, and the first bit of each byte."""
        return self.offset + LINE * (unit // self.together), self.bits * (unit % self.together)


@dataclass(frozen=True)
class Coded:
    """A plane of heads of `size` (a multiple of 4) dimensions in the codes of a codec."""

    codec: Codec
    size: int

    def __post_init__(self) -> None:
        if self.size % UNIT or self.width % UNIT:
            raise ValueError(f"codes of {self.codec.name} lie by {UNIT}s; a head of {self.size} does not")

    @cached_property
    def width(self) -> int:
        """Dimensions that share a scale."""
        return self.codec.width(self.size)

    @property
    def blocks(self) -> int:
        """Scales of a position."""
        return self.size // self.width

    @property
    def units(self) -> int:
        return self.size // UNIT

    @cached_property
    def planes(self) -> tuple[BitPlane, ...]:
        found, shift, offset = [], self.codec.bits, 0
        for bits in self.codec.planes():
            shift -= bits
            vectors = -(-self.units * bits // 8)
            found.append(BitPlane(bits, shift, offset, vectors))
            offset += LINE * vectors
        return tuple(found)

    @property
    def group_bytes(self) -> int:
        """Codes of a group."""
        return LINE * sum(plane.vectors for plane in self.planes)

    @property
    def scale_bytes(self) -> int:
        """Scales of a group."""
        return SCALES * self.blocks

    def scales_at(self, capacity: int) -> int:
        """Where the scales of a ring begin."""
        return capacity // GROUP * self.group_bytes

    def ring_bytes(self, capacity: int) -> int:
        """From one ring to the next. Capacity is a multiple of 16 positions."""
        if capacity % GROUP:
            raise ValueError(f"a plane of codes holds whole groups of {GROUP} positions, not {capacity}")
        used = capacity // GROUP * (self.group_bytes + self.scale_bytes)
        return -(-used // LINE) * LINE


def coded(dtype: str, size: int) -> Coded | None:
    """The layout of planes of a dtype that is a codec's name; None of other dtypes."""
    return None if dtype in ("f32", "f16", "bf16") else Coded(codec_named(dtype), size)


def pack(layout: Coded, codes: U8, scales: F16) -> U8:
    """The rings of codes [..., positions, size] and scales [..., positions, blocks]: uint8 [..., ring bytes]."""
    *leading, capacity, _ = codes.shape
    groups, count = capacity // GROUP, int(np.prod(leading))
    rings = np.zeros((count, layout.ring_bytes(capacity)), np.uint8)
    grouped = codes.reshape(count, groups, GROUP, layout.units, UNIT).swapaxes(2, 3).reshape(count, groups, -1, LINE)
    ours = rings[:, : layout.scales_at(capacity)].reshape(count, groups, layout.group_bytes)
    for plane in layout.planes:
        for unit in range(layout.units):
            at, bit = plane.place(unit)
            part = grouped[:, :, unit] >> plane.shift & (1 << plane.bits) - 1
            ours[:, :, at : at + LINE] |= (part << bit).astype(np.uint8)
    by_block = scales.astype("<f2").reshape(count, groups, GROUP, layout.blocks).swapaxes(2, 3)
    start = layout.scales_at(capacity)
    rings[:, start : start + groups * layout.scale_bytes] = (
        np.ascontiguousarray(by_block).reshape(count, -1).view(np.uint8)
    )
    return rings.reshape(*leading, -1)


def unpack(layout: Coded, rings: U8, capacity: int) -> tuple[U8, F16]:
    """The codes [..., capacity, size] and scales [..., capacity, blocks] of rings [..., ring bytes]."""
    leading, groups = rings.shape[:-1], capacity // GROUP
    count, start = int(np.prod(leading)), layout.scales_at(capacity)
    flat = rings.reshape(count, -1)
    grouped = np.zeros((count, groups, layout.units, LINE), np.uint8)
    ours = flat[:, :start].reshape(count, groups, layout.group_bytes)
    for plane in layout.planes:
        for unit in range(layout.units):
            at, bit = plane.place(unit)
            part = ours[:, :, at : at + LINE] >> bit & (1 << plane.bits) - 1
            grouped[:, :, unit] |= (part << plane.shift).astype(np.uint8)
    codes = grouped.reshape(count, groups, layout.units, GROUP, UNIT).swapaxes(2, 3)
    by_block = np.ascontiguousarray(flat[:, start : start + groups * layout.scale_bytes]).view("<f2")
    scales = by_block.reshape(count, groups, layout.blocks, GROUP).swapaxes(2, 3)
    return codes.reshape(*leading, capacity, -1), scales.reshape(*leading, capacity, -1)
