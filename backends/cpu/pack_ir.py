"""The native code that packs: blocks as they lie in the file to the units of `packing`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from llvmlite import ir

from briolette.compiler.tiles import TILE

from .build import I8, I16, I32, I64, PTR, VOID, Build, Target, Value
from .packing import LINE, WORD, Packing, Piece
from .quads import BYTES


def pack_module(target: Target, how: Packing) -> ir.Module:
    """A module with `pack`: see `emit_pack`."""
    module = ir.Module()
    module.triple = target.triple
    emit_pack(module, target, "pack", how)
    return module


def emit_pack(module: ir.Module, target: Target, name: str, how: Packing) -> ir.Function:
    """`void f(ptr file, ptr packed, i64 first, i64 last, i64 units)`: tiles first .. last of rows of `units` units."""
    function = ir.Function(module, ir.FunctionType(VOID, [PTR, PTR, I64, I64, I64]), name)
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), target)
    source, packed, first, last, units = function.args
    row_bytes = b.mul(units, how.stored_bytes)

    def unit(index: Value, _: list[Value]) -> None:
        tile, u = b.ir.udiv(index, units), b.ir.urem(index, units)
        start = b.at(b.at(source, b.mul(b.mul(tile, TILE), row_bytes)), b.mul(u, how.stored_bytes))
        rows = [b.at(start, b.mul(row_bytes, r)) for r in range(TILE)]
        out = b.at(packed, b.mul(index, how.bytes * TILE))
        words = list(_words(how).items())
        for group in range(0, len(words), TILE):
            some = words[group : group + TILE]
            lines = _turned(b, [_row(b, row, [parts for _, parts in some]) for row in rows])
            for (at, parts), line in zip(some, lines, strict=False):
                spread = any(piece.field.name == how.spread for piece, *_ in parts)
                b.store(_spread(b, line) if spread else line, out, LINE * how.order[at // WORD], align=LINE)

    b.loop(b.mul(first, units), b.mul(last, units), 1, [], unit)
    b.ir.ret_void()
    return function


# A part of a word: the piece it comes from, its offset in the file's unit, its bytes, its place in the word.
Part = tuple[Piece, int, int, int]


def _words(how: Packing) -> dict[int, list[Part]]:
    """Each word of a packed unit with the stretches of bytes that it is made of."""
    found: dict[int, list[Part]] = {}
    for piece in how.pieces.values():
        done = 0
        while done < piece.field.length:
            at = piece.at + done
            size = min(WORD - at % WORD, piece.field.length - done)
            found.setdefault(at // WORD * WORD, []).append((piece, piece.source + done, size, at % WORD))
            done += size
    return dict(sorted(found.items()))


def _row(b: Build, row: Value, words: Sequence[Sequence[Part]]) -> Value:
    """Up to 16 words of one row as a vector; stretches that lie together in the file are loaded together."""
    runs: list[list[Sequence[Part]]] = []
    for parts in words:
        ((_, offset, size, _), *more) = parts
        before = runs[-1][-1][0] if runs else None
        follows = before is not None and size == before[2] == WORD and offset == before[1] + WORD and not more
        if follows:
            runs[-1].append(parts)
        else:
            runs.append([parts])
    vector, at = b.const(b.vec(I32, TILE), 0), 0
    for run in runs:
        count = len(run)
        if count > 1:
            loaded = b.load(row, b.vec(I32, count), run[0][0][1])
            wide = b.shuffle(loaded, [min(i, count) for i in range(TILE)], b.const(loaded.type, 0))
            mask = [i if not at <= i < at + count else TILE + i - at for i in range(TILE)]
            vector = b.shuffle(vector, mask, wide) if count < TILE else loaded
        else:
            vector = b.ir.insert_element(vector, _word(b, row, run[0]), b.i32(at))
        at += count
    return vector


def _word(b: Build, row: Value, parts: Sequence[Part]) -> Value:
    """A word of one row, put together from where its bytes lie in the file."""
    pieces = []
    for _, offset, size, place in parts:
        loaded = b.load(row, {1: I8, 2: I16, 4: I32}[size], offset)
        pieces.append(b.shl(loaded if size == WORD else b.ir.zext(loaded, I32), 8 * place))
    return reduce(b.bit_or, pieces)


def _turned(b: Build, rows: list[Value]) -> list[Value]:
    """16 vectors of 16 turned about: lane i of result j is lane j of row i."""
    span = TILE // 2
    while span:
        first = [i if i // span % 2 == 0 else TILE + i - span for i in range(TILE)]
        second = [i + span if i // span % 2 == 0 else TILE + i for i in range(TILE)]
        turned = list(rows)
        for i in range(TILE):
            if i // span % 2 == 0:
                turned[i] = b.shuffle(rows[i], first, rows[i + span])
                turned[i + span] = b.shuffle(rows[i], second, rows[i + span])
        rows, span = turned, span // 2
    return rows


def _spread(b: Build, word: Value) -> Value:
    """Bits in the elements' order to the order of `Packing.spread`."""
    parts = []
    for k in range(8):
        four = b.bit_and(b.shr(word, 4 * k), 0xF)
        apart = b.bit_and(b.mul(four, 0x00204081), BYTES)  # bit i of four to byte i
        parts.append(b.shl(apart, k))
    return reduce(b.bit_or, parts)
