"""GGUF block formats as one table: how many bytes a block has, what they mean, and how numpy decodes them.

Every block format says the same thing: an element is `scale * q + offset`, where q is a small integer packed
in one or two fields, and scale and offset belong to a group of consecutive elements. So a format is *data*:
its fields, which of them hold q, which hold the group scales. The numpy decoder below and the code generator
(`backends/cpu/blocks.py`) both read this table, and a new format of this family is one more entry.

Layouts: ggml/src/ggml-common.h of llama.cpp. Values are bit-exact with `gguf.quants.dequantize`, which the
tests compare with; the order of multiplications is part of that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError


@dataclass(frozen=True)
class Field:
    """Bytes `offset .. offset + length` of a block.

    `type` is f32, f16, bf16, e8m0 (a power of two), i8 or u8. A u8 field may pack integers of `bits` < 8: of
    every `run` bytes the lowest bits come first, then the next bits of the same bytes, and so on, as `place`
    says. Six bits are the one irregular packing, that of q4_k and q5_k (see `_six_bits`).
    """

    name: str
    offset: int
    length: int
    type: str = "u8"
    bits: int = 8
    run: int = 1

    @property
    def end(self) -> int:
        return self.offset + self.length

    def place(self, index: int) -> tuple[int, int]:
        """The byte of the block, and the shift within it, of the `index`-th packed integer."""
        chunk, rest = divmod(index, self.run * (8 // self.bits))
        return self.offset + chunk * self.run + rest % self.run, self.bits * (rest // self.run)


@dataclass(frozen=True)
class Packed:
    """Small integers: `low | high << low.bits`, then `table[...]` or minus `bias`."""

    low: str
    high: str | None = None
    bias: int = 0
    table: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Format:
    """One block format.

    An element is `scale * q + offset`. Where `subs` is given, the scale of group g is `d * subs[g]` and its
    offset, if the format has offsets, `-dmin * subs[groups + g]`. Otherwise the one group is the block, its
    scale is `d` and its offset `m`. Formats without `quants` are plain numbers.
    """

    name: str
    ggml: int  # the type's number in a GGUF file
    elements: int
    bytes: int
    fields: tuple[Field, ...]
    quants: Packed | None = None
    subs: Packed | None = None
    group: int = 32  # elements that share a scale
    by_name: dict[str, Field] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {f.name: f for f in self.fields})

    def __getitem__(self, name: str) -> Field:
        return self.by_name[name]

    @cached_property
    def offsets(self) -> str | None:
        """The field that offsets come from, if the format has them."""
        return next((n for n in ("m", "dmin") if n in self.by_name), None)

    @property
    def groups(self) -> int:
        return self.elements // self.group


KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # iq4: ggml-common.h
# mxfp4 (OCP Microscaling Formats v1.0): doubled to be integers; its scale is halved.
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _scalar(name: str, type: str) -> Field:
    return Field(name, 0, {"f32": 4, "f16": 2, "bf16": 2, "e8m0": 1}[type], type)


def _ints(name: str, length: int, bits: int, run: int = 1) -> Field:
    return Field(name, 0, length, "u8", bits, run)


def _format(
    name: str,
    ggml: int,
    elements: int,
    *fields: Field,
    quants: Packed | None = None,
    subs: Packed | None = None,
    group: int | None = None,
) -> Format:
    """Fields follow one another without gaps."""
    placed: list[Field] = []
    for one in fields:
        placed.append(replace(one, offset=placed[-1].end if placed else 0))
    group = group or min(elements, 32)
    return Format(name, ggml, elements, placed[-1].end, tuple(placed), quants, subs, group)


_D, _M, _DMIN = _scalar("d", "f16"), _scalar("m", "f16"), _scalar("dmin", "f16")
_NIBBLES, _FIFTH, _SIX = _ints("qs", 16, 4, 16), _ints("qh", 4, 1), _ints("scales", 12, 6)
_TABLE = (
    _format("f32", 0, 1, _scalar("x", "f32")),
    _format("f16", 1, 1, _scalar("x", "f16")),
    _format("bf16", 30, 1, _scalar("x", "bf16")),
    _format("q4_0", 2, 32, _D, _NIBBLES, quants=Packed("qs", bias=8)),
    _format("q4_1", 3, 32, _D, _M, _NIBBLES, quants=Packed("qs")),
    _format("q5_0", 6, 32, _D, _FIFTH, _NIBBLES, quants=Packed("qs", "qh", bias=16)),
    _format("q5_1", 7, 32, _D, _M, _FIFTH, _NIBBLES, quants=Packed("qs", "qh")),
    _format("q8_0", 8, 32, _D, Field("qs", 0, 32, "i8"), quants=Packed("qs")),
    _format(
        *("q2_k", 10, 256, _ints("scales", 16, 4, 16), _ints("qs", 64, 2, 32), _D, _DMIN),
        quants=Packed("qs"),
        subs=Packed("scales"),
        group=16,
    ),
    _format(
        *("q3_k", 11, 256, _ints("qh", 32, 1, 32), _ints("qs", 64, 2, 32)),
        *(_ints("scales", 8, 4, 8), _ints("scales_h", 4, 2, 4), _D),
        quants=Packed("qs", "qh", bias=4),
        subs=Packed("scales", "scales_h", bias=32),
        group=16,
    ),
    _format(
        *("q4_k", 12, 256, _D, _DMIN, _SIX, _ints("qs", 128, 4, 32)),
        quants=Packed("qs"),
        subs=Packed("scales"),
    ),
    _format(
        *("q5_k", 13, 256, _D, _DMIN, _SIX, _ints("qh", 32, 1, 32), _ints("qs", 128, 4, 32)),
        quants=Packed("qs", "qh"),
        subs=Packed("scales"),
    ),
    _format(
        *("q6_k", 14, 256, _ints("qs", 128, 4, 64), _ints("qh", 64, 2, 32), Field("scales", 0, 16, "i8"), _D),
        quants=Packed("qs", "qh", bias=32),
        subs=Packed("scales"),
        group=16,
    ),
    _format("iq4_nl", 20, 32, _D, _NIBBLES, quants=Packed("qs", table=KVALUES)),
    _format(
        *("iq4_xs", 23, 256, _D, _ints("scales_h", 2, 2), _ints("scales", 4, 4), _ints("qs", 128, 4, 16)),
        quants=Packed("qs", table=KVALUES),
        subs=Packed("scales", "scales_h", bias=32),
    ),
    _format("mxfp4", 39, 32, _scalar("d", "e8m0"), _NIBBLES, quants=Packed("qs", table=E2M1)),
)
FORMATS: dict[str, Format] = {f.name: f for f in _TABLE}
BY_GGML: dict[int, Format] = {f.ggml: f for f in _TABLE}


def get(format: str | Format) -> Format:
    """The format of that name. Raises BrioletteError, listing the names, for one that is not in the table."""
    if isinstance(format, Format):
        return format
    if format not in FORMATS:
        raise BrioletteError(f"block format {format!r} is not supported; supported are {', '.join(FORMATS)}")
    return FORMATS[format]


def element_bytes(format: str | Format) -> float:
    """Bytes that an element takes, a fraction perhaps."""
    fmt = get(format)
    return fmt.bytes / fmt.elements


def row_bytes(format: str | Format, k: int) -> int:
    """Bytes of a row of `k` elements. Raises BrioletteError where `k` is not a whole number of blocks."""
    fmt = get(format)
    if k % fmt.elements:
        raise BrioletteError(f"{fmt.name} rows are made of blocks of {fmt.elements} elements, and {k} is not")
    return k // fmt.elements * fmt.bytes


def decode(format: str | Format, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8[..., nbytes] of whole blocks to float32[..., n]; bit-exact with `gguf.quants.dequantize`."""
    fmt = get(format)
    if data.shape[-1] % fmt.bytes:
        message = f"{fmt.name} blocks have {fmt.bytes} bytes; {data.shape[-1]} bytes are not a multiple"
        raise BrioletteError(message)
    blocks = np.ascontiguousarray(data).reshape(*data.shape[:-1], -1, fmt.bytes)
    if fmt.quants is None:
        return numbers(fmt["x"], blocks).reshape(*data.shape[:-1], -1)
    q = integers(fmt, fmt.quants, blocks).astype(np.float32)
    q = q.reshape(*q.shape[:-1], fmt.groups, fmt.group)
    scale, offset = scales(fmt, blocks)
    w = scale[..., None] * q
    if offset is not None:
        w += offset[..., None]
    return w.reshape(*data.shape[:-1], -1)


def scales(fmt: Format, blocks: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scale and offset (None where the format has none) of every group, each float32[..., groups]."""
    d = numbers(fmt["d"], blocks)
    least = numbers(fmt[fmt.offsets], blocks) if fmt.offsets else None
    if fmt.subs is None:
        return d, least
    subs = integers(fmt, fmt.subs, blocks).astype(np.float32)
    # d*q - dmin*s is d*q + (-dmin)*s: a sign changes no rounding.
    return d * subs[..., : fmt.groups], None if least is None else -least * subs[..., fmt.groups :]


def integers(fmt: Format, packed: Packed, blocks: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The packed integers of every block, in order of elements or groups."""
    low = _unpack(fmt[packed.low], blocks)
    if packed.high is not None:
        low = low | (_unpack(fmt[packed.high], blocks) << np.uint8(fmt[packed.low].bits))
    if packed.table is not None:
        return np.array(packed.table, dtype=np.int8)[low]
    return low.view(np.int8) - np.int8(packed.bias)


def numbers(one: Field, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A field that holds a number, float32[..., 1]."""
    raw = blocks[..., one.offset : one.end]
    if one.type == "bf16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if one.type == "e8m0":  # half of 2^(e-127), so that e < 2 is subnormal
        e = raw.astype(np.uint32)
        return np.where(e < 2, np.uint32(0x00200000) << e, (e - 1) << 23).astype(np.uint32).view(np.float32)
    return raw.view({"f32": "<f4", "f16": "<f2"}[one.type]).astype(np.float32)


def _unpack(one: Field, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    raw = blocks[..., one.offset : one.end]
    if one.bits == 8:
        return raw
    if one.bits == 6:
        return _six_bits(raw)
    shifts = np.arange(0, 8, one.bits, dtype=np.uint8)[:, None]
    fields = raw.reshape(*raw.shape[:-1], -1, 1, one.run) >> shifts & np.uint8((1 << one.bits) - 1)
    return fields.reshape(*raw.shape[:-1], -1)


def _six_bits(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eight scales, then eight minima, of 12 bytes: the first four of each are the low bits of bytes 0-3
    and 4-7; the other four have their low bits in the nibbles of bytes 8-11 and their high bits on top of
    bytes 0-7."""
    s, m, both = raw[..., 0:4], raw[..., 4:8], raw[..., 8:12]
    parts = (s & 63, both & 15 | s >> 2 & 48, m & 63, both >> 4 | m >> 2 & 48)
    return np.concatenate(parts, axis=-1)
