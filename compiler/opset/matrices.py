"""Products with weights, tables looked up by id, and experts."""

from __future__ import annotations

import math

import numpy as np

from ..dims import product
from ..ir import Type
from ..optable import REQUIRED, Array, Context, Draw, Sample, need, op
from ..tiles import BLOCK, BLOCKS, LEAST, LEVELS, TILE
from .basic import sample_one

INPUTS = ("f32", "q8")  # element types that products take


def _known(w: Type, rank: int, what: str) -> None:
    """A weight is a matrix (or a stack of them) of sizes known when the program is compiled."""
    fits = len(w.shape) == rank and all(isinstance(size, int) for size in w.shape)
    need(fits and w.dtype not in ("i32", "q8"), f"{what}, not {w}")


def _linear_type(x: Type, w: Type) -> Type:
    _known(w, 2, "linear needs a weight [N, K]")
    need(len(x.shape) > 0 and x.dtype in INPUTS, f"linear needs rows of f32 or q8, not {x}")
    fits = x.shape[-1] == w.shape[1]
    need(fits, f"linear: the weight is {w.shape[0]}x{w.shape[1]}, the input rows are {x.shape[-1]}")
    return Type((*x.shape[:-1], w.shape[0]))


def _sample_linear(d: Draw) -> Sample:
    rows, k, n = d.integer(1, 6), d.integer(1, 40), d.integer(1, 23)
    return Sample((Type((rows, k)), Type((n, k))))


@op(
    "x w",
    infer=_linear_type,
    traits="token",
    flops=lambda out, x, w: 2 * int(np.prod(x)) * w[0],
    sample=_sample_linear,
)
def linear(context: Context, x: Array, w: Array) -> Array:
    """x [..., K] by a weight of N rows [N, K]: x @ w^T, [..., N]."""
    return x @ w.T


def _expert_type(x: Type, w: Type, ids: Type, order: Type | None = None) -> Type:
    _known(w, 3, "expert_linear needs weights [E, N, K]")
    need(ids.dtype == "i32" and len(ids.shape) > 0, f"expert_linear needs integer ids [T, U], not {ids}")
    need(len(x.shape) > 0 and x.dtype in INPUTS, f"expert_linear needs rows of f32 or q8, not {x}")
    fits = x.shape[-1] == w.shape[2]
    need(fits, f"expert_linear: weights of {w.shape[2]} columns, input rows of {x.shape[-1]}")
    shared = x.shape[:-1] == ids.shape[:-1]
    need(shared or x.shape[:-1] == ids.shape, f"expert_linear: input {list(x.shape)}, ids {list(ids.shape)}")
    ordered = order is None or order == Type((product(ids.shape),), "i32")
    need(ordered, f"expert_linear: an order of {list(ids.shape)} ids is a permutation of all of them, not {order}")
    return Type((*ids.shape, w.shape[1]))


def _sample_expert(d: Draw) -> Sample:
    rows, used, experts = d.integer(1, 4), d.integer(1, 3), d.integer(3, 5)
    k, n = d.integer(1, 24), d.integer(1, 12)
    x = d.pick([(rows, k), (rows, used, k)])
    return Sample((Type(x), Type((experts, n, k)), Type((rows, used), "i32")), below={2: experts})


@op(
    "x w ids order?",
    infer=_expert_type,
    traits="token",
    flops=lambda out, x, w, *ids: 2 * int(np.prod(out)) * w[2],
    reads=lambda out, x, w, *ids: (math.prod(x), min(w[0], math.prod(ids[0])) * w[1] * w[2], *map(math.prod, ids)),
    sample=_sample_expert,
)
def expert_linear(context: Context, x: Array, w: Array, ids: Array, order: Array | None = None) -> Array:
    """Each row by its own experts' weights: x [T, K] or [T, U, K], w [E, N, K], ids [T, U] -> [T, U, N]. An order
    (`group`) tells kernels in which order to take the rows, and changes no value."""
    shared = x.ndim == ids.ndim
    out = np.empty((*ids.shape, w.shape[1]), x.dtype)
    for at in np.ndindex(*ids.shape):
        out[at] = w[ids[at]] @ x[at[:-1] if shared else at]
    return out


def _group_type(ids: Type, experts: int) -> Type:
    need(ids.dtype == "i32" and len(ids.shape) > 0, f"group needs integer ids, not {ids}")
    need(experts > 0, f"group: ids of {experts} experts")
    return Type((product(ids.shape),), "i32")


def _sample_group(d: Draw) -> Sample:
    experts = d.integer(1, 5)
    return Sample((Type((d.integer(1, 9), d.integer(1, 3)), "i32"),), {"experts": experts}, below={0: experts})


@op("ids", infer=_group_type, sample=_sample_group, experts=REQUIRED)
def group(context: Context, ids: Array, experts: int) -> Array:
    """The places of ids [T, U], each from 0 to `experts`, row by row counted from 0 to T * U, by ascending id; those of
    one id in order."""
    return np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)


def _combine_type(x: Type, w: Type) -> Type:
    fits = x.shape[:-1] == w.shape and len(w.shape) > 1
    need(fits, f"combine: values {list(x.shape)}, weights {list(w.shape)}")
    need(x.dtype == w.dtype == "f32", f"combine is on f32, not on {x.dtype} and {w.dtype}")
    return Type((*x.shape[:-2], x.shape[-1]))


def _sample_combine(d: Draw) -> Sample:
    rows, used, n = d.integer(1, 4), d.integer(1, 4), d.integer(1, 21)
    return Sample((Type((rows, used, n)), Type((rows, used))))


@op(
    "x w",
    infer=_combine_type,
    traits="token",
    flops=lambda out, x, w: 2 * int(np.prod(x)),
    sample=_sample_combine,
)
def combine(context: Context, x: Array, w: Array) -> Array:
    """The weighted sum of several vectors a token: x [T, U, N], w [T, U] -> [T, N]."""
    return np.einsum("...un,...u->...n", x, w)


def _embed_type(w: Type, ids: Type) -> Type:
    _known(w, 2, "embed needs a table [V, N]")
    need(ids.dtype == "i32", f"embed needs integer ids, not {ids.dtype}")
    return Type((*ids.shape, w.shape[1]))


def _sample_embed(d: Draw) -> Sample:
    v, n, t = d.integer(1, 9), d.integer(1, 40), d.integer(1, 5)
    return Sample((Type((v, n)), Type((t,), "i32")), below={1: v})


@op(
    "w ids",
    infer=_embed_type,
    traits="row token",
    reads=lambda out, w, ids: (math.prod(out), math.prod(ids)),
    sample=_sample_embed,
)
def embed(context: Context, w: Array, ids: Array) -> Array:
    """Rows of a table [V, N] by ids [...]: [..., N]."""
    return w[ids]


def _dequant_type(w: Type) -> Type:
    need(w.dtype != "i32", "dequant is of a stored weight, not of integers")
    return Type(w.shape)


@op("w", infer=_dequant_type, traits="shows", sample=sample_one)
def dequant(context: Context, w: Array) -> Array:
    """A small stored weight (a norm, a scale) as f32."""
    return w.astype(context.real)


def _quantize_type(x: Type, tile: int, bits: int, block: int) -> Type:
    need(block in BLOCKS, f"quantize: {' or '.join(map(str, BLOCKS))} integers share a scale, not {block}")
    fits = len(x.shape) > 0 and isinstance(x.shape[-1], int) and x.shape[-1] % block == 0 and x.dtype == "f32"
    need(fits, f"quantize needs rows of f32 in blocks of {block}, not {x}")
    need(tile > 0, f"quantize: tiles of {tile} rows are none")
    need(bits in LEVELS, f"quantize: integers have 8 or 16 bits, not {bits}")
    return Type(x.shape, "q8")


def _sample_quantize(d: Draw) -> Sample:
    block = d.pick(list(BLOCKS))
    how = {"tile": d.pick([1, 12]), "bits": d.pick([8, 16]), "block": block}
    return Sample((Type((d.integer(1, 5), block * d.integer(1, 3))),), how)


@op(
    "x",
    infer=_quantize_type,
    traits="token",
    flops=lambda out, x: 4 * int(np.prod(x)),
    sample=_sample_quantize,
    tile=1,
    bits=8,
    block=BLOCK,
)
def quantize(context: Context, x: Array, tile: int, bits: int, block: int) -> Array:
    """Rows as integers, `block` of which share a scale: q = round(x / s), s = max |x| / 127 for 8 bits, / (127 * 128)
    for 16, which are kept as two of 8; the values q * s. `tile` rows lie interleaved, for products with many at a
    time."""
    blocks = x.reshape(*x.shape[:-1], -1, block)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / x.dtype.type(LEVELS[bits])
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > LEAST)
    return (np.rint(blocks * inverse) * scale).reshape(x.shape)


def _pack_type(w: Type) -> Type:
    need(len(w.shape) in (2, 3), f"pack is of weights [N, K] or [E, N, K], not {w}")
    rows, columns = w.shape[-2:]
    whole = isinstance(rows, int) and isinstance(columns, int) and rows % TILE == 0 and columns % BLOCK == 0
    need(whole and w.dtype not in ("i32", "q8"), f"pack needs whole tiles of {TILE} rows and {BLOCK} columns, not {w}")
    return w


def _sample_pack(d: Draw) -> Sample:
    return Sample((Type((TILE * d.integer(1, 2), BLOCK * d.integer(1, 2))),))


@op("w", infer=_pack_type, traits="shows", sample=_sample_pack)
def pack(context: Context, w: Array) -> Array:
    """A stored weight with 16 rows interleaved, as kernels that multiply integers read it. Made when it is loaded."""
    return w
