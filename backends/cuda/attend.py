"""Attention and what belongs to the cache: the launches of `attend`, of writes of codes and of rotations."""

from __future__ import annotations

from collections.abc import Mapping

from briolette.compiler.codecs import codec_named, is_codec
from briolette.compiler.codecs.rotation import signs
from briolette.compiler.dims import Dim
from briolette.compiler.ir import Node
from briolette.compiler.plan import base, writes_cache
from briolette.compiler.views import heads_lie_together, view_of

from .blocks import codec_source, codec_type, number
from .source import RESIDENT, Kernel, structure_name
from .steps import Argument, Launch, Parts, Places, known

THREADS = 128
TILE = 64  # positions that a block of threads works on at a time
# Of the kernel for many rows, `kernels/attend_many.cuh`: dimensions of K and V that it has at a time, in f16.
MANY_ROWS, MANY_THREADS, MANY_CHUNK = 32, 256, 256
CODE_HEADS, CODE_CHUNK, CODE_BITS = 8, 32, 6  # of the kernel on codes: `kernels/attend_codes.cuh`
PLAIN_RESIDENT = 2 * RESIDENT  # where planes are plain
PARTS = 32  # of what a row sees in decoding: blocks enough for a large GPU, whatever the depth


def plane_type(dtype: str, size: int) -> tuple[str, str]:
    """The C++ type of a plane of heads of a size, and what must stand before it."""
    if is_codec(dtype):
        return f"CodedPlane<{codec_type(dtype, size)}, {size}>", codec_source(dtype, size)
    return f"PlainPlane<{dtype}, {size}>", ""


def attend_launches(item: Node, places: Places, tiles: bool, mixed: bool) -> list[tuple[Launch, Kernel]]:
    """Attention of many rows of one sequence on tensor cores, where `tiles` allows f16 and bytes; else row by row, in
    decoding in parts, and a kernel that puts these together."""
    q, k, v, pos, *near = item.args
    view = view_of(q)
    assert heads_lie_together(view)
    heads, groups, size = known(q.shape[1]), known(k.shape[1]), known(q.shape[2])
    parts = PARTS if q.shape[0] == 1 else 1
    kinds, needs = zip(*(plane_type(_dtype(x), known(x.shape[2])) for x in (k, v, *near)), strict=True)
    keys, values, near_keys, near_values = (*kinds, *(kinds if not near else ()))[:4]
    window, cap = item.get("window"), item.get("softcap")
    constants = {
        "SHARE": heads // groups,
        "GROUPS": groups,
        "QUERY": size,
        "KEY": item.get("shared") or size,
        "VALUE": known(v.shape[2]),
        "SHARED": int(bool(item.get("shared"))),
        "WINDOW": window or 0,
        "SINK": item.get("sink", 0),
        "RECENT": item.get("recent", 0),
        "NEAR": int(bool(near)),
        "CAPPED": int(cap is not None),
        "Q_STRIDE": view.strides[0],
        "TILE": TILE,
        "THREADS": THREADS,
        "PARTS": parts,
    }
    inline = "  static __device__ __forceinline__ float"
    lines = [
        *(f"  static const int {name} = {value};" for name, value in constants.items()),
        f"{inline} scale() {{ return {number(item['scale'])}; }}",
        f"{inline} cap() {{ return {number(cap or 1.0)}; }}",
        f"  typedef {keys} Keys;",
        f"  typedef {values} Values;",
        f"  typedef {near_keys} NearKeys;",
        f"  typedef {near_values} NearValues;",
    ]
    spec = structure_name("attention", lines)
    needs = (*needs, "\n".join([f"struct {spec} {{", *lines, "};"]))
    planes = [places.plane(base(x)) for x in (k, v, *(near or (k, v)))]
    (keys_at, capacity), (values_at, _), (near_keys_at, near_capacity), (near_values_at, _) = planes
    given = {
        "const float* q": places.pointer(q),
        "const u8* k": keys_at,
        "const u8* v": values_at,
        "const u8* near_k": near_keys_at,
        "const u8* near_v": near_values_at,
        "const i64* capacity": capacity,
        "const i64* near_capacity": near_capacity,
        "const int* positions": places.pointer(pos),
        "const int* slots": Argument("slots"),
        "float* out": places.pointer(item),
        "float* scratch": Argument("scratch"),
    }
    names = ", ".join(declaration.split()[-1] for declaration in given)
    integers = tiles and heads // groups <= CODE_HEADS and all(map(_in_bytes, (k, v))) and not item.get("shared")
    name = "attend_codes_part" if integers else "attend_part"
    shared = f"AttendCodes<{spec}>::Shared" if integers else f"AttendShared<{spec}>"
    body = f"__shared__ {shared} own;\n{name}<{spec}>({names}, own);"
    coded = any(is_codec(_dtype(x)) for x in (k, v))
    resident = (RESIDENT if coded else PLAIN_RESIDENT) // THREADS
    kernel = Kernel("attend", tuple(given), body, THREADS, needs, resident)
    rows = q.shape[0]
    if tiles and rows != 1 and not mixed:
        wide = any(_dtype(x) == "f32" for x in (k, v, *near))
        return [_many(given, names, spec, needs, rows * (heads // groups), groups, constants, wide)]
    launches = [(Launch(kernel.name, (parts, groups, rows), THREADS, tuple(given.values())), kernel)]
    if parts > 1:
        merged = {"const float* scratch": Argument("scratch"), "float* out": places.pointer(item)}
        body = f"attend_merge<{spec}>(scratch, out);"
        merge = Kernel("attend_merge", tuple(merged), body, THREADS, needs)
        launches.append((Launch(merge.name, (heads, 1, rows), THREADS, tuple(merged.values())), merge))
    return launches


def _in_bytes(plane: Node) -> bool:
    """Whether attention can multiply a plane's codes in integers: few levels, one scale a head, whole chunks."""
    dtype, size = _dtype(plane), known(plane.shape[2])
    if not is_codec(dtype) or size % CODE_CHUNK:
        return False
    codec = codec_named(dtype)
    return codec.bits <= CODE_BITS and codec.width(size) == size


def _many(
    given: Mapping[str, Argument],
    names: str,
    spec: str,
    needs: tuple[str, ...],
    pairs: Dim,
    groups: int,
    constants: Mapping[str, int],
    wide: bool,
) -> tuple[Launch, Kernel]:
    """The kernel for many rows, pairs of a token and one of a group's heads. wide: whether planes have more bits than
    f16."""
    taken = {name: argument for name, argument in given.items() if name != "float* scratch"}
    taken["const int* rows"] = Argument("rows")
    passed = names.replace(", scratch", ", *rows, memory")
    body = f"extern __shared__ __align__(16) u8 memory[];\nattend_many<{spec}>({passed});"
    kernel = Kernel("attend_many", tuple(taken), body, MANY_THREADS, needs, RESIDENT // MANY_THREADS)
    shared = _many_shared(constants["QUERY"], constants["VALUE"], wide)
    grid = (Parts(pairs, MANY_ROWS), groups, 1)
    return Launch(kernel.name, grid, MANY_THREADS, tuple(taken.values()), shared), kernel


def _many_shared(query: int, value: int, wide: bool) -> int:
    """Bytes of `AttendTiles::Shared`, in its order. wide: whether K or V are in two parts each."""
    depth, width = -(-query // 16) * 16, -(-value // 64) * 64
    parts = 2 if wide else 1
    chunk = MANY_CHUNK // parts
    tile = parts * max(MANY_ROWS * (min(depth, chunk) + 8), min(width, chunk) * (MANY_ROWS + 8))
    halves = 2 * MANY_ROWS * (depth + 8) + tile + 2 * MANY_ROWS * (MANY_ROWS + 8)
    return 2 * halves + 4 * MANY_ROWS * (MANY_ROWS + 1) + MANY_ROWS * (3 * 4 + 8)


def _dtype(plane: Node) -> str:
    write = writes_cache(base(plane))
    assert write is not None
    return write.type.dtype


def scratch_bytes(item: Node) -> int:
    """What attention in parts keeps of them: sums, the largest score and the sum of weights of each head."""
    rows, heads, size = item.shape
    return 4 * PARTS * known(heads) * (known(size) + 2) if rows == 1 else 0


def encode_launch(item: Node, places: Places) -> tuple[Launch, Kernel]:
    """A cache write that makes codes."""
    x, pos = item.args
    _, heads, size = (known(n) if i else n for i, n in enumerate(item.shape))
    assert isinstance(heads, int) and isinstance(size, int)
    plane, capacity = places.plane(item)
    kind = codec_type(item.type.dtype, size)
    given = {
        "const float* x": places.pointer(x),
        "const int* positions": places.pointer(pos),
        "const int* slots": Argument("slots"),
        "u8* plane": plane,
        "const i64* capacity": capacity,
    }
    body = (
        f"__shared__ EncodeShared<{kind}, {size}> own;\n"
        f"encode<{kind}, {size}, {heads}>(x, positions, slots, plane, capacity, own);"
    )
    threads = min(THREADS, -(-size // 32) * 32)
    kernel = Kernel("encode", tuple(given), body, threads, (codec_source(item.type.dtype, size),), RESIDENT // threads)
    return Launch(kernel.name, (x.shape[0] * heads, 1, 1), threads, tuple(given.values())), kernel


def signs_source(size: int) -> str:
    """The signs of a rotation as bits (1: minus), the first dimension in the lowest of the first word."""
    negative = signs(size) < 0
    words = [sum(int(bit) << i for i, bit in enumerate(negative[at : at + 32])) for at in range(0, size, 32)]
    return f"__device__ const u32 signs_{size}[{len(words)}] = {{{', '.join(f'{word:#x}u' for word in words)}}};"
