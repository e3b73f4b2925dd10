"""How many warps of a kernel a multiprocessor can hold at once, from what the kernel takes.

Limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Registers are
given to warps by 256, to all four quarters of a multiprocessor alike; shared memory is given by 128 bytes, after 1 KB
that the system takes of each block.
"""

from __future__ import annotations

from dataclasses import dataclass

from .nvrtc import Resources

WARP, REGISTERS_BY, SHARED_BY, SYSTEM = 32, 256, 128, 1024


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor: registers of 32 bits, bytes of shared memory, warps and blocks. A block's `most` shared."""

    registers: int
    shared: int
    warps: int
    blocks: int
    most: int


LIMITS = {
    80: Limits(65536, 164 << 10, 64, 32, 163 << 10),  # A100
    89: Limits(65536, 100 << 10, 48, 24, 99 << 10),  # RTX 40, L4, L40
    90: Limits(65536, 228 << 10, 64, 32, 227 << 10),  # H100, H200
}


def occupancy(threads: int, taken: Resources, architecture: int, dynamic: int = 0) -> float:
    """The share of a multiprocessor's warps that blocks of a kernel can fill. dynamic: bytes of shared memory that a
    launch adds. 0 where not even one block fits."""
    limits = LIMITS[architecture]
    warps = -(-threads // WARP)
    each = -(-taken.registers * WARP // REGISTERS_BY) * REGISTERS_BY
    of_registers = limits.registers // each // 4 * 4 // warps if each else limits.blocks
    shared = -(-(taken.shared + dynamic + SYSTEM) // SHARED_BY) * SHARED_BY
    fits = min(limits.blocks, limits.warps // warps, of_registers, limits.shared // shared)
    return fits * warps / limits.warps
