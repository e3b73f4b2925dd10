"""The variants of the TurboQuant paper (arXiv 2504.19874) that caches do not use: for comparison only.

* `Mse`: a dense random rotation, Lloyd-Max codes, and the vector's own length as the scale.
* `Prod`: `Mse` with one bit less, and the signs of a random sketch of what is left (QJL): inner products are unbiased.
* `Split`: some channels with more bits than the others, each part an `Mse` of its own: bits between whole numbers.

All take and give float64 [..., size]. What our codecs do instead: a Walsh-Hadamard rotation, and a scale that keeps
the length or the inner product, which costs no more than the length does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .lloyd_max import levels

F64 = NDArray[np.float64]


def random_rotation(size: int, seed: int) -> F64:
    """A uniformly random orthogonal matrix [size, size]: Q of normal values' QR decomposition, without R's signs."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    rotation: F64 = q * np.sign(np.diag(r))
    return rotation


@dataclass(frozen=True)
class MseCode:
    """Codes uint8 [..., size] and lengths [...]."""

    codes: NDArray[np.uint8]
    lengths: F64


@dataclass(frozen=True)
class Mse:
    """Vectors of `size` values at `bits` bits each (0 bits keep nothing), with the least squared error."""

    size: int
    bits: int
    seed: int = 0

    @cached_property
    def rotation(self) -> F64:
        return random_rotation(self.size, self.seed)

    @cached_property
    def levels(self) -> F64:
        """For coordinates of unit vectors."""
        return levels(self.bits, self.size) / math.sqrt(self.size) if self.bits else np.zeros(1)

    def encode(self, x: F64) -> MseCode:
        lengths = np.linalg.norm(x, axis=-1)
        turned = x @ self.rotation.T
        unit = np.divide(turned, lengths[..., None], out=np.zeros_like(turned), where=lengths[..., None] != 0)
        between = (self.levels[1:] + self.levels[:-1]) / 2
        return MseCode(np.searchsorted(between, unit).astype(np.uint8), lengths)

    def decode(self, code: MseCode) -> F64:
        return code.lengths[..., None] * (self.levels[code.codes] @ self.rotation)


@dataclass(frozen=True)
class ProdCode:
    """The codes of `Mse`, the sketch's signs, bool [..., size], and the lengths of what was left [...]."""

    mse: MseCode
    signs: NDArray[np.bool_]
    lengths: F64


@dataclass(frozen=True)
class Prod:
    """Vectors at `bits` bits a value, whose inner products with any other vector are right on average."""

    size: int
    bits: int
    seed: int = 0

    @cached_property
    def mse(self) -> Mse:
        return Mse(self.size, self.bits - 1, self.seed)

    @cached_property
    def sketch(self) -> F64:
        """Normal values [size, size], independent of the rotation's."""
        return np.random.default_rng([self.seed, 1]).standard_normal((self.size, self.size))

    def encode(self, x: F64) -> ProdCode:
        code = self.mse.encode(x)
        rest = x - self.mse.decode(code)
        return ProdCode(code, rest @ self.sketch.T >= 0, np.linalg.norm(rest, axis=-1))

    def decode(self, code: ProdCode) -> F64:
        ones = np.where(code.signs, 1.0, -1.0)
        scale = math.sqrt(math.pi / 2) / self.size * code.lengths[..., None]
        return self.mse.decode(code.mse) + scale * (ones @ self.sketch)


@dataclass(frozen=True)
class Split:
    """`outliers` of `size` channels at `high` bits, the others at `low`."""

    size: int
    outliers: int
    high: int
    low: int
    seed: int = 0

    @property
    def bits(self) -> float:
        """Bits a value. The paper's 32 channels of 128 at 3 bits and 96 at 2 are 2.25, though it calls them 2.5."""
        return (self.outliers * self.high + (self.size - self.outliers) * self.low) / self.size

    @cached_property
    def parts(self) -> tuple[Mse, Mse]:
        return (
            Mse(self.outliers, self.high, self.seed),
            Mse(self.size - self.outliers, self.low, self.seed + 1),
        )

    def channels(self, x: F64) -> NDArray[np.intp]:
        """All channels, those with the most energy over the vectors x [..., size] first."""
        energy = np.sum(x.reshape(-1, self.size) ** 2, axis=0)
        return np.argsort(-energy, kind="stable")

    def encode(self, x: F64, channels: NDArray[np.intp]) -> tuple[MseCode, MseCode]:
        first, rest = np.split(x[..., channels], [self.outliers], axis=-1)
        return self.parts[0].encode(first), self.parts[1].encode(rest)

    def decode(self, code: tuple[MseCode, MseCode], channels: NDArray[np.intp]) -> F64:
        ordered = np.concatenate([part.decode(c) for part, c in zip(self.parts, code, strict=True)], axis=-1)
        x = np.empty_like(ordered)
        x[..., channels] = ordered
        return x
