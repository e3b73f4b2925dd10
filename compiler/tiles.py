"""How values and weights are cut where products are made in integers."""

from __future__ import annotations

BLOCK = 32  # quantised rows are made of whole blocks of so many; a scale is for one of them or for several
BLOCKS = (32, 64, 128)  # of how many
SHARING = {8: 64, 16: 128}  # how many share a scale at most, by bits: 8 lose what is small beside something large
LEVELS = {8: 127, 16: 127 * 128}  # the largest integer of so many bits: with 16, 128 times one byte plus another
LEAST = 2.0**-126  # a scale below has no inverse in f32: such a block is zero
TILE = 16  # rows of a weight that lie interleaved
