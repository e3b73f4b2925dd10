"""The KV cache's planes on a device."""

from __future__ import annotations

from dataclasses import dataclass

from briolette.compiler.codecs import codec_named, is_codec
from briolette.compiler.ir import Node
from briolette.compiler.ops import attributes
from briolette.compiler.plan import Plan, base, writes_cache

from ..base import Options, PlaneMemory
from .steps import known

WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}
WORD = 4
WHOLE = 32  # positions that planes hold a multiple of


@dataclass(frozen=True)
class CachePlane:
    """A plane [heads, capacity, size] of dtype, read with a window or without. Of a near plane the window is what
    counts as recent; the first `sink` positions stay."""

    slot: int
    plane: str
    heads: int
    size: int
    dtype: str
    window: int | None
    sink: int = 0

    def positions(self, options: Options) -> int:
        """All positions, or a ring that holds a window and the chunk being written behind those that stay."""
        ring = options.context if self.window is None else self.window + options.chunk
        held = max(min(options.context, self.sink + ring), self.sink + 1)
        return -(-held // WHOLE) * WHOLE

    @property
    def token_bytes(self) -> int:
        """What a position takes: of codes whole words of each bit plane, and the scales (`kernels/planes.cuh`)."""
        if not is_codec(self.dtype):
            return self.heads * self.size * WIDTHS[self.dtype]
        codec = codec_named(self.dtype)
        words = sum(-(-self.size * bits // 32) for bits in codec.planes())
        return self.heads * (WORD * words + 2 * (self.size // codec.width(self.size)))

    def memory(self, options: Options) -> PlaneMemory:
        """The plane as it is allocated."""
        held = self.positions(options)
        return PlaneMemory(self.slot, self.plane, self.token_bytes, held, self.window, options.sequences)


def planes_of(plan: Plan) -> list[CachePlane]:
    """The planes that a program writes, with the widest window that any attention reads them through."""
    windows: dict[Node, list[int | None]] = {}
    for step in plan.steps:
        if step.node.op == "attend":
            for place, source in enumerate(step.node.args):
                seen = {1: "window", 2: "window", 4: "recent", 5: "recent"}.get(place)
                if seen is not None:
                    windows.setdefault(base(source), []).append(step.node.get(seen))
    found = []
    for step in plan.steps:
        write = writes_cache(step.node)
        if write is not None:
            given = attributes(write)
            seen = windows.get(step.node, [None])
            window = None if None in seen else max(w for w in seen if w is not None)
            _, heads, size = write.shape
            where = given["slot"], given["plane"]
            found.append(CachePlane(*where, known(heads), known(size), write.type.dtype, window, given["sink"]))
    return found
