"""What an engine has to know of a group of programs: all but their nodes and their machine code.

It is a few kilobytes that are made of a model's whole program, and kept on disk: with them and the code beside them, a
later run reads no architecture, applies no rule and plans nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import numpy as np

from briolette.compiler.dims import evaluate, parse_dim

from .. import formats
from ..planes import CachePlane
from .coded import GROUP, coded

DTYPES = {"f32": np.float32, "f16": np.uint16, "bf16": np.uint16}  # 16-bit planes are kept as bits
POINTER = 8
WHOLE = 2 * GROUP  # positions that coded planes hold a multiple of: all the scales of a ring are whole lines then


@dataclass(frozen=True)
class Stored:
    """A tensor as programs read it.

    how: the op by which they do, "weight" where it lies in the file, "pack" in the order of the kernels, or "dequant"
    as f32.
    """

    name: str
    how: str
    format: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def file_bytes(self) -> int:
        """What it takes in the file."""
        return formats.row_bytes(self.format, self.columns) * self.rows

    @property
    def f32_bytes(self) -> int:
        """What its numbers take as f32."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Plane(CachePlane):
    """A plane in the host's memory. grouped: whether it holds whole groups of positions, as planes of codes do, and
    those that are read beside them."""

    grouped: bool = False

    @property
    def whole(self) -> int:
        """See `CachePlane.whole`."""
        return WHOLE if self.grouped else 1

    @property
    def token_bytes(self) -> int:
        """See `CachePlane.token_bytes`."""
        layout = coded(self.dtype, self.size)
        if layout is not None:
            return self.heads * layout.ring_bytes(WHOLE) // WHOLE
        return self.heads * self.size * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True)
class Record:
    """A group of programs.

    code: a name for their machine code. results: the numbers that each program writes to its first output, as a size.
    weights and planes: what they expect to find in the tables they are given, in this order. scratch: bytes for each
    thread, shared: for all. arena: bytes for results within a step. likeliest: where in the arena a program leaves the
    likeliest tokens and where their logits, and of how many at most; None where none does. looked_up: stored tensors of
    which they read only rows, with a row's bytes. vocabulary: logits of a token; token_ids: how many tokens there are.
    nodes: of the unrolled program.
    """

    code: str
    results: dict[str, str]
    weights: tuple[Stored, ...]
    planes: tuple[Plane, ...]
    scratch: int
    shared: int
    arena: int
    likeliest: tuple[int, int, int] | None
    looked_up: dict[str, int]
    vocabulary: int
    token_ids: int
    nodes: int

    def result_size(self, program: str, rows: int) -> int:
        """Numbers that a step of so many tokens writes to a program's first output: its logits."""
        return evaluate(parse_dim(self.results[program]), {"T": rows})

    def scratch_bytes(self, threads: int) -> int:
        return max(1, self.shared + self.scratch * threads)

    @property
    def table_bytes(self) -> int:
        """Where native code finds weights and planes, and how many positions each plane holds."""
        return POINTER * (len(self.weights) + 2 * len(self.planes))

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_bytes(content: bytes) -> Record:
        given = json.loads(content)
        found = given.pop("likeliest")
        weights = tuple(Stored(**w | {"shape": tuple(w["shape"])}) for w in given.pop("weights"))
        planes = tuple(Plane(**p) for p in given.pop("planes"))
        return Record(weights=weights, planes=planes, likeliest=found and (found[0], found[1], found[2]), **given)
