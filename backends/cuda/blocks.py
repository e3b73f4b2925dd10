"""Block formats and codecs as C++ structures of constants, written from the tables that all engines share.

`kernels/blocks.cuh` and `kernels/planes.cuh` say what is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from briolette.compiler.codecs import Codec, codec_named

from .. import formats
from ..formats import Field, Format, Packed

PLAIN = ("f32", "f16", "bf16")
MOST_BYTES = 64  # levels that kernels look up as bytes
_TYPES = {"f16": 1, "e8m0": 2}  # of a scale


def format_name(name: str) -> str:
    """The structure of a format."""
    return name if name in PLAIN else f"fmt_{name}"


def format_source(name: str) -> str:
    """The structure of constants of a block format; nothing for plain numbers, which are written by hand."""
    fmt = formats.get(name)
    if fmt.quants is None:
        return ""
    low = fmt[fmt.quants.low]
    high = None if fmt.quants.high is None else fmt[fmt.quants.high]
    align = math.gcd(fmt.bytes, 16)
    words = _table_words(fmt.quants)
    values: dict[str, int] = {
        "elements": fmt.elements,
        "bytes": fmt.bytes,
        "align": align,
        "group": fmt.group,
        "whole": int(low.bits == 8),
        "is_signed": int(low.type == "i8"),
        "bias": fmt.quants.bias,
        **_placed("low", low, align),
        **_placed("high", high, align),
        "d_at": fmt["d"].offset,
        "d_type": _TYPES[fmt["d"].type],
        "has_offset": int(fmt.offsets is not None),
        "m_at": fmt[fmt.offsets].offset if fmt.offsets else 0,
        **_subs(fmt),
        "has_table": int(fmt.quants.table is not None),
    }
    lines = [f"  static const int {name} = {value};" for name, value in values.items()]
    table = f"  static __device__ __forceinline__ u32 table(int i) {{ return {_picked(words)}; }}"
    return "\n".join([f"struct {format_name(name)} {{", *lines, table, "};"])


def _placed(name: str, field: Field | None, align: int) -> dict[str, int]:
    """Where a bit field lies; of none, zeros that are never used."""
    if field is None:
        return {f"{name}_at": 0, f"{name}_bits": 0, f"{name}_run": 1, f"{name}_align": 1}
    return {
        f"{name}_at": field.offset,
        f"{name}_bits": field.bits,
        f"{name}_run": field.run,
        f"{name}_align": math.gcd(align, field.offset) or align,
    }


def _subs(fmt: Format) -> dict[str, int]:
    """How groups' scales are kept: `subs` is 0 where the block's is theirs, 6 for the irregular packing, 8 for bytes
    with a sign, 1 for fields of bits."""
    none = {"subs": 0, "sub_at": 0, "sub_bits": 1, "sub_run": 1, "sub_bias": 0}
    nothing = {"sub_high_at": 0, "sub_high_bits": 0, "sub_high_run": 1}
    if fmt.subs is None:
        return none | nothing
    low = fmt[fmt.subs.low]
    kind = 8 if low.type == "i8" else 6 if low.bits == 6 else 1
    found = {"subs": kind, "sub_at": low.offset, "sub_bits": low.bits, "sub_run": low.run, "sub_bias": fmt.subs.bias}
    if fmt.subs.high is None:
        return found | nothing
    high = fmt[fmt.subs.high]
    return found | {"sub_high_at": high.offset, "sub_high_bits": high.bits, "sub_high_run": high.run}


def _table_words(quants: Packed) -> list[int]:
    """Sixteen bytes with a sign as four words."""
    table = np.array(quants.table or [0] * 16, np.int8)
    return [int(word) for word in table.view(np.uint32)]


def codec_type(name: str, size: int) -> str:
    """The structure of a codec for heads of a size."""
    return f"codec_{name}_{size}"


def codec_source(name: str, size: int) -> str:
    """A codec for heads of `size` values: its levels, thresholds and the way to its scale."""
    codec = codec_named(name)
    kind = codec_type(name, size)
    table, thresholds = codec.table(size), codec.thresholds(size)
    return "\n".join(
        [
            f"__device__ const float {kind}_levels[{len(table)}] = {{{numbers(table)}}};",
            f"__device__ const float {kind}_thresholds[{len(thresholds)}] = {{{numbers(thresholds)}}};",
            f"struct {kind} {{",
            f"  static const int BITS = {codec.bits}, WIDTH = {codec.width(size)};",
            f"  static const bool ABSMAX = {_bool(codec.fit == 'absmax')}, EDEN = {_bool(codec.fit == 'eden')};",
            f"  static __device__ __forceinline__ float level(u32 code) {{ return {kind}_levels[code]; }}",
            *_level_bytes(table),
            f"  static __device__ __forceinline__ double root_width() {{ return {math.sqrt(codec.width(size))!r}; }}",
            *_nearest(codec, kind),
            "};",
        ]
    )


def _level_bytes(table: Sequence[float]) -> list[str]:
    """Levels as bytes with a sign, in units of a step, four to a word, where they are few enough to be looked up in
    registers."""
    if len(table) > MOST_BYTES:
        return []
    step = float(np.abs(table).max()) / 127
    levels = np.zeros(max(16, len(table)), np.int8)
    levels[: len(table)] = np.rint(np.asarray(table) / step)
    inline = "  static __device__ __forceinline__"
    return [
        f"{inline} u32 bytes(int i) {{ return {_picked([int(w) for w in levels.view(np.uint32)])}; }}",
        f"{inline} float step() {{ return {number(step)}; }}",
    ]


def _picked(words: Sequence[int]) -> str:
    """The i-th of some words, which are constants where i is one."""
    picks = "".join(f"i == {i} ? {word:#010x}u : " for i, word in enumerate(words[:-1]))
    return f"{picks}{words[-1]:#010x}u"


def _nearest(codec: Codec, kind: str) -> list[str]:
    """The code of a scaled value: how many thresholds are below it, found by halving; and of what has no thresholds,
    as GGUF rounds."""
    q8 = "const float w = truncf(v); return (u8)(int)(w + (fabsf(v - w) >= 0.5f ? copysignf(1.0f, v) : 0.0f) + 128.0f);"
    q4 = "return (u8)fminf(fmaxf(truncf(v + 8.5f), 0.0f), 15.0f);"
    scale = "fabsf(most) / 127.0f" if codec.bits == 8 else "most / -8.0f"
    steps = [
        f"code += v > {kind}_thresholds[code + {1 << bit} - 1] ? {1 << bit} : 0;" for bit in reversed(range(codec.bits))
    ]
    inline = "  static __device__ __forceinline__"
    return [
        f"{inline} u8 nearest(float v) {{ int code = 0; {' '.join(steps)} return (u8)code; }}",
        f"{inline} float absmax_scale(float most) {{ return {scale}; }}",
        f"{inline} u8 absmax_code(float v) {{ {q8 if codec.bits == 8 else q4} }}",
    ]


def numbers(values: Sequence[float]) -> str:
    """f32 constants that read back as the same bits."""
    return ", ".join(number(float(value)) for value in values)


def number(value: float) -> str:
    """An f32 constant, exactly."""
    value = float(np.float32(value))
    if math.isinf(value):
        return "-__int_as_float(0x7f800000)" if value < 0 else "__int_as_float(0x7f800000)"
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _bool(value: bool) -> str:
    return str(value).lower()
