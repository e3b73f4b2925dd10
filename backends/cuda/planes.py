"""The KV cache's planes on a device."""

from __future__ import annotations

from dataclasses import dataclass

from briolette.compiler.codecs import codec_named, is_codec

from ..planes import CachePlane

WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}
WORD = 4
WHOLE = 32  # positions that planes hold a multiple of


@dataclass(frozen=True)
class DevicePlane(CachePlane):
    """A plane as `kernels/planes.cuh` has it."""

    @property
    def whole(self) -> int:
        """See `CachePlane.whole`."""
        return WHOLE

    @property
    def token_bytes(self) -> int:
        """See `CachePlane.token_bytes`: of codes whole words of each bit plane, and the scales."""
        if not is_codec(self.dtype):
            return self.heads * self.size * WIDTHS[self.dtype]
        codec = codec_named(self.dtype)
        words = sum(-(-self.size * bits // 32) for bits in codec.planes())
        return self.heads * (WORD * words + 2 * (self.size // codec.width(self.size)))
