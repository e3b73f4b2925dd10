"""Rotary positions, the KV cache, and attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..codecs import codec_named, decode, encode, is_codec
from ..codecs import hadamard as transformed
from ..dims import Dim, symbol
from ..ir import Node, Type
from ..optable import F32, REQUIRED, Array, Context, Draw, Sample, need, node, op
from .rows import softmax

CAPACITY = symbol("C")
CACHE_DTYPES = ("f32", "f16", "bf16")
PLANES = ("k", "v", "near_k", "near_v")


def inverse_frequencies(theta: float, dims: int, scale: float, freqs: Array | None = None, real: Any = F32) -> Array:
    """real[dims/2]: scale * theta ** (-2 i / dims) (Su et al. 2021, section 3.2.2), divided by `freqs`."""
    inverse = (1.0 / float(theta) ** (np.arange(0, dims, 2, dtype=np.float64) / dims)).astype(real)
    if freqs is not None:
        inverse = inverse / freqs.astype(real)
    return inverse * real(scale)


def _table_type(pos: Type, freqs: Type | None = None, *, theta: float, dims: int, scale: float) -> Type:
    need(len(pos.shape) == 1 and pos.dtype == "i32", f"rope needs positions [T], not {pos}")
    need(dims > 0 and dims % 2 == 0, f"rope turns pairs: {dims} dimensions are no even number")
    need(theta > 0, f"rope: the base of the frequencies is above 0, not {theta}")
    if freqs is not None:
        fits = freqs.shape == (dims // 2,) and freqs.dtype == "f32"
        need(fits, f"rope: {dims // 2} frequency factors wanted, {freqs} given")
    return Type((*pos.shape, dims // 2, 2))


def _sample_table(d: Draw) -> Sample:
    half = d.integer(1, 12)
    attrs = {"theta": d.pick([100.0, 10000.0]), "dims": 2 * half, "scale": d.pick([1.0, 0.125])}
    pos = Type((d.integer(1, 5),), "i32")
    return Sample((pos, Type((half,))) if d.pick([True, False]) else (pos,), attrs, below={0: 60})


@op(
    "pos freqs?",
    infer=_table_type,
    traits="token",
    flops=lambda out, *args: 2 * int(np.prod(out)),
    sample=_sample_table,
    theta=REQUIRED,
    dims=REQUIRED,
    scale=1.0,
)
def rope_table(
    context: Context, pos: Array, freqs: Array | None = None, *, theta: float, dims: int, scale: float
) -> Array:
    """Cosine and sine of every position's angles: [T, dims/2, 2]. Angles are rounded to f32 first, as in peers."""
    inverse = inverse_frequencies(theta, dims, scale, freqs, context.real)
    angle = (pos.astype(context.real)[:, None] * inverse).astype(np.float64)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(context.real)


def _rotate_type(x: Type, table: Type, *, interleaved: bool) -> Type:
    need(len(x.shape) == 3 and x.dtype == "f32", f"rope needs heads [T, H, D], not {x}")
    fits = len(table.shape) == 3 and table.shape[2] == 2 and table.dtype == "f32"
    need(fits, f"rope needs angles [T, dims/2, 2], not {table}")
    need(x.shape[0] == table.shape[0], f"rope: {x.shape[0]} tokens, {table.shape[0]} positions")
    half, size = table.shape[1], x.shape[2]
    fits = isinstance(half, int) and isinstance(size, int) and 2 * half <= size
    need(fits, f"rope: {half} pairs do not fit into heads of {size}")
    return Type(x.shape)


def _sample_rotate(d: Draw) -> Sample:
    rows, heads, half = d.integer(1, 4), d.integer(1, 3), d.integer(1, 12)
    size = 2 * half + d.integer(0, 3)
    return Sample((Type((rows, heads, size)), Type((rows, half, 2))), {"interleaved": d.pick([True, False])})


@op(
    "x table",
    infer=_rotate_type,
    traits="row token",
    flops=lambda out, x, t: 3 * int(np.prod(x)),
    sample=_sample_rotate,
    interleaved=False,
)
def rotate(context: Context, x: Array, table: Array, *, interleaved: bool) -> Array:
    """Turns pairs of each head by the table's angles; pair i is (i, i + dims/2), if interleaved (2i, 2i + 1)."""
    half = table.shape[1]
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    first, second = slice(0, half), slice(half, 2 * half)
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def _rope_body(x: Node, pos: Node, freqs: Node | None = None, *, interleaved: bool, **attrs: Any) -> Node:
    rest = (freqs,) if freqs is not None else ()
    return node("rotate", x, node("rope_table", pos, *rest, **attrs), interleaved=interleaved)


def _rope_type(x: Type, pos: Type, freqs: Type | None = None, *, interleaved: bool, **attrs: Any) -> Type:
    return _rotate_type(x, _table_type(pos, freqs, **attrs), interleaved=interleaved)


def _sample_rope(d: Draw) -> Sample:
    rotated, table = _sample_rotate(d), _sample_table(d)
    x, angles = rotated.args
    pos, half = Type(x.shape[:1], "i32"), angles.shape[1]
    assert isinstance(half, int)
    args = (x, pos, Type((half,))) if d.pick([True, False]) else (x, pos)
    return Sample(args, {**rotated.attrs, **table.attrs, "dims": 2 * half}, below={1: 60})


@op(
    "x pos freqs?",
    infer=_rope_type,
    traits="token",
    flops=lambda out, x, *rest: 3 * int(np.prod(x)),
    sample=_sample_rope,
    body=_rope_body,
    theta=REQUIRED,
    dims=REQUIRED,
    scale=1.0,
    interleaved=False,
)
def rope(
    context: Context, x: Array, pos: Array, freqs: Array | None = None, *, interleaved: bool, **attrs: Any
) -> Array:
    """Rotary position embedding of heads [T, H, D] (Su et al. 2021): `rotate` by `rope_table`."""
    return rotate(context, x, rope_table(context, pos, freqs, **attrs), interleaved=interleaved)


def _hadamard_type(x: Type, *, block: int | None, inverse: bool) -> Type:
    size = x.shape[-1] if x.shape else 0
    need(x.dtype == "f32" and isinstance(size, int) and size > 0, f"hadamard needs rows of f32, not {x}")
    assert isinstance(size, int)
    length = block or size
    fits = length & (length - 1) == 0 and size % length == 0
    need(fits, f"hadamard: rows of {size} are no blocks of a power of two{f', {block}' if block else ''}")
    return Type(x.shape)


def _sample_hadamard(d: Draw) -> Sample:
    block, count = d.pick([1, 2, 8, 16, 32]), d.integer(1, 3)
    attrs = {"block": block if count & (count - 1) or d.pick([True, False]) else None, "inverse": d.pick([True, False])}
    return Sample((Type((d.integer(1, 4), d.integer(1, 3), block * count)),), attrs)


@op(
    "x",
    infer=_hadamard_type,
    traits="row",
    flops=lambda out, x: int(np.prod(out)) * max(1, int(out[-1]).bit_length() - 1),
    sample=_sample_hadamard,
    block=None,
    inverse=False,
)
def hadamard(context: Context, x: Array, *, block: int | None, inverse: bool) -> Array:
    """Rows turned so that their values look like a normal distribution's: fixed random signs, then the orthonormal
    Walsh-Hadamard transform, of the whole row or by blocks. Scalar products stay; `inverse` turns back."""
    return transformed(x, block, inverse)


def _rotary_first_type(x: Type, w: Type | None = None, *, pairs: int, half: int, inverse: bool) -> Type:
    size = x.shape[-1] if len(x.shape) == 3 else 0
    need(x.dtype == "f32" and isinstance(size, int) and size > 0, f"rotary_first needs heads [T, H, D], not {x}")
    assert isinstance(size, int)
    fits = 0 < pairs <= half and 2 * half <= size
    need(fits, f"rotary_first: {pairs} pairs, of values {half} apart, do not fit into heads of {size}")
    need(w is None or w.shape == (size,), f"rotary_first: factors {w} for heads of {size}")
    need(
        w is None or not inverse, "rotary_first: factors belong to the order that they are made for, not to its inverse"
    )
    return Type(x.shape)


def _sample_rotary_first(d: Draw) -> Sample:
    half = d.integer(1, 6)
    size = 2 * half + d.integer(0, 3)
    attrs = {"pairs": d.integer(1, half), "half": half, "inverse": d.pick([True, False])}
    x = Type((d.integer(1, 3), d.integer(1, 3), size))
    return Sample((x,) if attrs["inverse"] or d.pick([True, False]) else (x, Type((size,))), attrs)


def rotary_order(size: int, pairs: int, half: int) -> list[int]:
    """Which dimension comes at each place where those of the first `pairs` pairs (i, i + half) come first."""
    first = [*range(pairs), *range(half, half + pairs)]
    return [*first, *range(pairs, half), *range(half + pairs, size)]


@op(
    "x w?",
    infer=_rotary_first_type,
    traits="row",
    sample=_sample_rotary_first,
    pairs=REQUIRED,
    half=REQUIRED,
    inverse=False,
)
def rotary_first(context: Context, x: Array, w: Array | None = None, *, pairs: int, half: int, inverse: bool) -> Array:
    """Heads [T, H, D] with the dimensions of the first `pairs` rotary pairs, (i, i + half), before all others; these
    others times their factors w [D], where there are such. `inverse` puts the dimensions back."""
    order = rotary_order(x.shape[-1], pairs, half)
    out = np.empty_like(x)
    if inverse:
        out[..., order] = x
        return out
    out[...] = x[..., order]
    if w is not None:
        out[..., 2 * pairs :] *= w[order[2 * pairs :]]
    return out


def rounded(x: Array, dtype: str) -> Array:
    """f32 values as a cache of that element type keeps them (round to nearest even), or after a codec."""
    if is_codec(dtype):
        codec = codec_named(dtype)
        return decode(codec, *encode(codec, np.asarray(x, F32)))
    if dtype == "f16":
        return x.astype(np.float16).astype(F32)
    if dtype == "bf16":
        bits = np.ascontiguousarray(x, F32).view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # ties to even
        return ((bits + half) & np.uint32(0xFFFF0000)).view(F32)
    return x


def _write_type(x: Type, pos: Type, slot: Dim, plane: str, dtype: str, sink: int) -> Type:
    need(len(x.shape) == 3 and x.dtype == "f32", f"a cache takes heads [T, H, D], not {x}")
    need(
        pos.shape == x.shape[:1] and pos.dtype == "i32",
        f"a cache takes positions {list(x.shape[:1])}, not {pos}",
    )
    need(plane in PLANES, f"a cache has the planes {', '.join(PLANES)}, no {plane!r}")
    known = dtype in CACHE_DTYPES or is_codec(dtype)
    need(known, f"no cache of {dtype}; there are {', '.join(CACHE_DTYPES)}, and codecs such as tq4")
    need(sink >= 0, f"a cache keeps some first positions, not {sink}")
    return Type((CAPACITY, *x.shape[1:]), dtype)


def _sample_write(d: Draw) -> Sample:
    rows, heads, size = d.integer(1, 4), d.integer(1, 3), d.integer(1, 9)
    attrs = {"slot": d.integer(0, 3), "plane": d.pick(PLANES), "dtype": d.pick(CACHE_DTYPES)}
    types = (Type((rows, heads, size)), Type((rows,), "i32"))
    return Sample(types, attrs, below={1: 9}, distinct=frozenset({1}))


@op(
    "x pos",
    infer=_write_type,
    traits="effect",
    sample=_sample_write,
    slot=REQUIRED,
    plane=REQUIRED,
    dtype="f32",
    sink=0,
)
def cache_write(context: Context, x: Array, pos: Array, slot: Dim, plane: str, dtype: str, sink: int) -> Array:
    """Puts heads [T, H, D] into a K or V plane at their positions; the plane [C, H, D] as it then is. Where a plane is
    a ring, its first `sink` positions stay."""
    return context.append(slot, plane, rounded(x, dtype), pos)


def _attend_type(
    q: Type,
    k: Type,
    v: Type,
    pos: Type,
    near_k: Type | None = None,
    near_v: Type | None = None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sink: int,
    recent: int,
    shared: int,
    query_bits: int,
    weight_bits: int,
) -> Type:
    ranks = {len(t.shape) for t in (q, k, v)}
    need(ranks == {3}, f"attend needs q [T, H, D], k [C, G, D], v [C, G, E], not {q}, {k}, {v}")
    need(q.dtype == "f32", f"attend needs queries of f32, not {q.dtype}")
    if shared:
        fits = k.shape[2] == shared and q.shape[2] == v.shape[2]
        need(fits, f"attend: {shared} values of keys beside those of values, {q}, {k}, {v}")
    else:
        need(q.shape[2] == k.shape[2], f"attend: query heads of {q.shape[2]}, key heads of {k.shape[2]}")
    need(k.shape[:2] == v.shape[:2], f"attend: keys {list(k.shape)}, values {list(v.shape)}")
    heads, groups = q.shape[1], k.shape[1]
    fits = isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups == 0
    need(fits, f"attend: {heads} query heads do not divide among {groups} key heads")
    need(q.shape[:1] == pos.shape and pos.dtype == "i32", f"attend: {q.shape[0]} queries, positions {pos}")
    need(window is None or window > 0, f"attend: a window of {window} positions sees nothing")
    need(softcap is None or softcap > 0, f"attend: a softcap is above 0, not {softcap}")
    if near_k is not None:
        fits = near_v is not None and (near_k.shape, near_v.shape) == (k.shape, v.shape)
        need(fits, f"attend: near planes {near_k} and {near_v} of planes {k} and {v}")
    need(sink >= 0 and recent >= 0, f"attend: {sink} first and {recent} latest positions")
    need((near_k is None) == (sink + recent == 0), "attend: near planes hold the first and the latest positions")
    for bits, plane in ((query_bits, k), (weight_bits, v)):
        need(bits in (0, 8, 16), f"attend: products in integers take 8 or 16 bits, not {bits}")
        need(not bits or is_codec(plane.dtype), f"attend: products in integers need a plane of codes, not {plane}")
    return Type((*q.shape[:2], v.shape[2]))


def _sample_attend(d: Draw) -> Sample:
    rows, groups, share = d.integer(1, 4), d.integer(1, 3), d.integer(1, 3)
    length, size, shared = d.integer(1, 12), d.integer(2, 20), d.pick([False, False, True])
    key_size = d.integer(1, size - 1) if shared else size
    vsize = size if shared else d.integer(1, 20)
    q, k, v = (rows, groups * share, size), (length, groups, key_size), (length, groups, vsize)
    attrs = {"scale": d.pick([1.0, 0.125]), "window": d.pick([None, 1, 3]), "softcap": d.pick([None, 5.0])}
    attrs |= {"shared": key_size} if shared else {}
    args, near = (Type(q), Type(k), Type(v), Type((rows,), "i32")), d.pick([(), (), (Type(k), Type(v))])
    if near:
        attrs |= {"sink": d.integer(0, 3), "recent": d.integer(1, 5)}
    return Sample((*args, *near), attrs, below={3: length})


def _attend_flops(out: tuple[int, ...], *args: tuple[int, ...]) -> int:
    q, k, v = args[:3]
    return 2 * int(np.prod(q)) * k[0] + 2 * int(np.prod(out)) * v[0]


def _attend_reads(out: tuple[int, ...], *args: tuple[int, ...]) -> list[int]:
    """Near planes hold but a few positions, which are read there and not among the codes."""
    return [int(np.prod(arg)) if i < 4 else 0 for i, arg in enumerate(args)]


@op(
    "q k v pos near_k? near_v?",
    infer=_attend_type,
    traits="token",
    flops=_attend_flops,
    reads=_attend_reads,
    sample=_sample_attend,
    scale=REQUIRED,
    window=None,
    softcap=None,
    sink=0,
    recent=0,
    shared=0,
    query_bits=0,
    weight_bits=0,
)
def attend(
    context: Context,
    q: Array,
    k: Array,
    v: Array,
    pos: Array,
    near_k: Array | None = None,
    near_v: Array | None = None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sink: int,
    recent: int,
    shared: int,
    query_bits: int,
    weight_bits: int,
) -> Array:
    """Causal attention (Vaswani et al. 2017, equation 1) of queries at `pos` over cached positions j <= pos,
    and j > pos - window where there is a window; q [T, H, D], k [C, G, D], v [C, G, E] -> [T, H, E]. Positions
    j < sink and j > pos - recent are read from the near planes, where there are such. shared: k has but the first
    `shared` dimensions of keys; the others are those of v. query_bits, weight_bits: to how many bits a backend may
    round queries, and softmax's weights, to multiply them with codes in integers; 0: not at all, as here."""
    at = np.arange(k.shape[0])
    seen = at <= pos[:, None]
    if window is not None:
        seen &= at > pos[:, None] - window

    def scored(keys: Array, values: Array) -> Array:
        if shared:
            keys = np.concatenate([keys, values[..., shared:]], axis=-1)
        return np.einsum("thd,chd->thc", q, np.repeat(keys, q.shape[1] // k.shape[1], axis=1)) * scale

    def summed(weights: Array, values: Array) -> Array:
        return np.einsum("thc,chd->thd", weights, np.repeat(values, q.shape[1] // k.shape[1], axis=1))

    scores, near = scored(k, v), (at < sink) | (at > pos[:, None] - recent)
    if near_k is not None and near_v is not None:
        scores = np.where(near[:, None, :], scored(near_k, near_v), scores)
    if softcap is not None:
        scores = np.tanh(scores / softcap) * softcap
    scores = np.where(seen[:, None, :], scores, -np.inf)
    if near_v is None:
        return summed(softmax(context, scores), v)
    weights = softmax(context, scores)
    return summed(np.where(near[:, None, :], 0, weights), v) + summed(np.where(near[:, None, :], weights, 0), near_v)
