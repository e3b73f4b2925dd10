"""Packed weights: every format is packed and multiplied as the op table says, on every kind of machine.

What native code makes of quantised activations is held against products in double precision of the same integers; an
error is measured against the sum of |w| |x| of each result.
"""

from __future__ import annotations

from itertools import pairwise

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir
from programs import ARM, BLOCKS, FEW, HOST, PLAIN, RUNNABLE, Program, T, undefined

from briolette.backends import formats
from briolette.backends.base import Options, Weights
from briolette.backends.cpu import jit
from briolette.backends.cpu.build import Target
from briolette.backends.cpu.compilation import form_of
from briolette.backends.cpu.emit import Emitter, layout_of
from briolette.backends.cpu.engine import CpuEngine
from briolette.backends.cpu.kernels import packed
from briolette.backends.cpu.kernels.packed import ROWS, emit_inner
from briolette.backends.cpu.pack import Packed, packed_bytes
from briolette.backends.cpu.packing import PACKED, TILE, packing
from briolette.backends.cpu.record import Stored
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module, Node, topological
from briolette.compiler.ops import node, with_args
from briolette.compiler.pipeline import Form, Trace, optimise
from briolette.compiler.rewrite import rewrite
from briolette.compiler.rules.integers import Integers, products
from briolette.compiler.text import parse_module, print_module

BOUND = {16: 1e-6, 8: 5e-5}  # by bits of activations: sums of 8 begin at 1.5 * 2^23, which takes bits from them
PACKING = Options(context=64, weights="packed")
MACHINES = FEW | {name: RUNNABLE[name] for name in ("avx2", "8 lanes") if name in RUNNABLE}


def quantised(p: Program, output: Node, rows: int, bits: int = 16) -> np.ndarray:
    """The program's value in f64, but for activations, which are rounded to integers as f32 arithmetic does it."""
    module = rewrite(p.module(output), products(Integers(tuple(PACKED.items()), ROWS, bits)))
    single = Interpreter(lambda name: p.decoded(name, np.float32))
    single.step([output], range(rows), 0)  # what tokens and positions are
    given: dict[Node, np.ndarray] = {}
    for item in topological(module.outputs):
        if item.op == "quantize":
            (given[item],) = single.evaluate([item], {})
    assert given, "nothing is quantised"
    double = Interpreter(p.decoded, np.float64)
    double.tokens, double.positions, double.sizes = single.tokens, single.positions, single.sizes
    return double.evaluate(module.outputs, {item: value.astype(np.float64) for item, value in given.items()})[0]


def size(p: Program, x: str, w: str, rows: int) -> np.ndarray:
    return np.abs(p.decoded(x)[:rows]) @ np.abs(p.decoded(w)).T


# Between them every way of reading a field; on other machines, the rest is the same code.
DIFFERENT = {"avx2": ("q5_0", "q8_0", "q4_k", "iq4_nl"), "8 lanes": ("q8_0", "q4_k"), "sse2": ("q5_0", "iq4_nl")}
PAIRS = [(f, m) for m in MACHINES for f in DIFFERENT.get(m, BLOCKS)]


@pytest.mark.parametrize(("format", "machine"), PAIRS)
def test_every_format(format, machine):
    target = MACHINES[machine]
    steps = ((1, "fast", 16), (ROWS + 3, "exact", 16), (ROWS + 3, "fast", 8))
    for rows, prefill, bits in steps if machine.endswith("lanes") else steps[:2]:
        p = Program(seed=rows)
        y = node("linear", p.input("x", rows, 1024), p.weight("w", 48, 1024, format=format))
        found = p.run(y, rows, threads=2, target=target, weights="packed", prefill=prefill)
        assert np.all(np.abs(found - quantised(p, y, rows, bits)) <= BOUND[bits] * size(p, "x", "w", rows))
        assert np.linalg.norm(found - p.exact(y, rows)) <= 2.0**-bits * 8 * np.linalg.norm(found)


@settings(max_examples=10, deadline=None)
@given(
    format=st.sampled_from(["q8_0", "q5_0", "q4_k", "q6_k", "iq4_nl"]),
    rows=st.integers(1, 40),
    tiles=st.integers(1, 5),
    units=st.integers(1, 3),
    threads=st.integers(1, 9),
)
def test_any_size_and_any_number_of_threads(format, rows, tiles, units, threads):
    p = Program(seed=rows)
    columns = PACKED[format] * units
    y = node("linear", p.input("x", rows, columns), p.weight("w", TILE * tiles, columns, format=format))
    found = p.run(y, rows, threads=threads, weights="packed")
    assert np.all(np.abs(found - quantised(p, y, rows)) <= BOUND[16] * size(p, "x", "w", rows) + 1e-30)


@pytest.mark.parametrize(("prefill", "bits"), [("exact", 16), ("fast", 8)])
@pytest.mark.parametrize(("format", "columns"), [("q8_0", 544), ("q5_1", 608), ("q6_k", 1280), ("q4_k", 768)])
def test_more_rows_and_columns_than_are_taken_together(format, columns, prefill, bits, monkeypatch, tmp_path):
    """Also an odd number of tiles of weights, and a last tile of rows that is not full."""
    monkeypatch.setenv("BRIOLETTE_CACHE", str(tmp_path))  # what is compiled here is not for others
    monkeypatch.setattr(packed, "TOGETHER", 2 * ROWS)
    rows = 5 * ROWS + 3
    p = Program(seed=columns)
    y = node("linear", p.input("x", rows, columns), p.weight("w", 3 * TILE, columns, format=format))
    found = p.run(y, rows, threads=2, weights="packed", prefill=prefill)
    assert np.all(np.abs(found - quantised(p, y, rows, bits)) <= BOUND[bits] * size(p, "x", "w", rows))


def test_no_panel_is_made_where_registers_are_few():
    assert Target(PLAIN.triple, "icelake-server", "+avx512f,+avx512vnni,+avx512vl", 16).multiplies_panels
    assert not Target(PLAIN.triple, "alderlake", "+avx2,+fma,+f16c,+avxvnni", 8).multiplies_panels


@pytest.mark.parametrize("rows", [1, 14])
def test_what_follows_a_product_and_products_of_one_input(rows):
    p = Program(seed=3)
    x = p.input("x", rows, 512)
    gate, up = (node("linear", x, p.weight(n, 32, 512, format="q4_k")) for n in ("gate", "up"))
    hidden = node("mul", node("gelu", gate), up)
    y = node("softcap", hidden, cap=30.0)
    module = optimise(p.module(y), form_of("decode" if rows == 1 else "all", PACKING))
    assert sum(n.op == "quantize" for n in topological(module.roots)) == 1
    products = [n for n in topological(module.roots) if n.op == "fused" and n["family"] == "linear"]
    assert max(sum(n.op == "linear" for n in topological([p["block"].result])) for p in products) == 2
    assert np.allclose(p.run(y, rows, 2, weights="packed"), quantised(p, y, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5])
def test_experts_and_parts_of_a_weight(rows):
    p = Program(seed=4)
    x = p.input("x", rows, 256)
    ids = node("top", p.input("scores", rows, 6), k=3)
    both = p.weight("both", 6, 64, 256, format="q4_k")
    gate, up = (node("slice", both, axis=1, start=at, stop=at + 32) for at in (0, 32))
    hidden = node("mul", node("silu", node("expert_linear", x, gate, ids)), node("expert_linear", x, up, ids))
    down = node("expert_linear", hidden, p.weight("down", 6, 16, 32, format="q5_1"), ids)
    y = node("combine", down, node("take", p.input("scores", rows, 6), ids))
    found, wanted = p.run(y, rows, 2, weights="packed"), p.exact(y, rows)
    assert np.linalg.norm(found - wanted) <= 0.03 * np.linalg.norm(wanted)


@settings(max_examples=12, deadline=None)
@given(
    format=st.sampled_from(["q8_0", "q5_0", "q4_k", "q6_k"]),
    rows=st.sampled_from([2, 3, ROWS, 37, 150]),
    units=st.integers(1, 2),
    experts=st.integers(1, 7),
    used=st.integers(1, 3),
    shared=st.booleans(),
    threads=st.integers(1, 9),
    prefill=st.sampled_from(["exact", "fast"]),
)
def test_experts_take_their_tokens_together(format, rows, units, experts, used, shared, threads, prefill):
    """However the tokens spread: experts without any, and those with more than are gathered at a time."""
    p = Program(seed=rows)
    columns, used = PACKED[format] * units, min(used, experts)
    ids = node("top", p.input("scores", rows, experts), k=used)
    x = p.input("x", rows, columns if shared else used * columns)
    x = x if shared else node("reshape", x, shape=(T, used, columns))
    w = p.weight("w", experts, 2 * TILE, columns, format=format)
    y = node("reshape", node("expert_linear", x, w, ids), shape=(T, used * 2 * TILE))
    sizes = node("reshape", node("expert_linear", *(absolute(p, n) for n in (x, w)), ids), shape=y.shape)
    found = p.run(y, rows, threads, weights="packed", prefill=prefill)
    bits = 16 if prefill == "exact" else 8
    assert np.all(np.abs(found - quantised(p, y, rows, bits)) <= BOUND[bits] * p.exact(sizes, rows))


def absolute(p: Program, item: Node) -> Node:
    """The same with the absolute values of its tensor."""
    if item.op != "weight":
        return with_args(item, tuple(absolute(p, a) if a.op in ("weight", "embed") else a for a in item.args))
    values = np.abs(p.decoded(item["name"], np.float32))
    return p.add(f"|{item['name']}|", values, item.shape)


@pytest.mark.parametrize("target", MACHINES.values(), ids=MACHINES)
def test_experts_on_every_machine(target):
    p = Program(seed=12)
    ids = node("top", p.input("scores", 20, 3), k=2)
    product = node("expert_linear", p.input("x", 20, 64), p.weight("w", 3, 32, 64, format="q5_0"), ids)
    y = node("reshape", product, shape=(T, 64))
    found, wanted = p.run(y, 20, 2, target=target, weights="packed"), quantised(p, y, 20)
    assert np.linalg.norm(found - wanted) <= BOUND[16] * np.linalg.norm(wanted)


@pytest.mark.parametrize("rows", [1, 13])
def test_experts_may_stay_in_the_file(rows):
    """They are multiplied in f32 then, those of many tokens by expert; the others are packed."""
    p = Program(seed=13)
    ids = node("top", p.input("scores", rows, 5), k=2)
    up = p.weight("up", 5, 32, 64, format="q8_0")
    hidden = node("expert_linear", p.input("x", rows, 64), up, ids)
    down = node("expert_linear", hidden, p.weight("down", 5, 64, 32, format="q5_1"), ids)
    mixed = node("combine", down, node("take", p.input("scores", rows, 5), ids))
    y = node("linear", mixed, p.weight("head", 16, 64, format="q8_0"))
    engine = p.engine(y, 2, weights="mixed")
    found, wanted = engine.step(range(rows), 0, "all"), p.exact(y, rows)
    assert engine.allocated["packed"] == p.tensors["head"][1].nbytes
    assert np.linalg.norm(found - wanted) <= 1e-3 * np.linalg.norm(wanted)
    grouped = [n for n in topological(engine.plan("all").module.roots) if n.op == "group"]
    assert len(grouped) == 1
    engine.close()


def test_a_head_that_is_the_embedding_too():
    """The table is looked up in where it lies, and multiplied with where it was packed."""
    p = Program(seed=5)
    table = p.weight("table", 64, 256, format="q8_0")
    y = node("linear", node("embed", table, node("tokens", rows=T)), table)
    engine = p.engine(y, 2, weights="packed")
    engine.step(range(9), 0)
    assert engine.allocated["packed"] == p.tensors["table"][1].nbytes
    assert [array.nbytes for array in engine.kept] == [p.tensors["table"][1].nbytes] * len(engine.kept)
    engine.close()


def test_rows_of_zeros_and_of_huge_numbers():
    p = Program(seed=6)
    values = np.zeros((3, 64), np.float32)
    values[1, 5], values[2] = 3e38, 1e-30
    x = node("embed", p.add("x", values, (3, 64)), node("position", rows=T))
    y = node("linear", x, p.weight("w", 16, 64, format="q8_0"))
    found = p.run(y, 3, weights="packed")
    assert np.all(found[0] == 0)
    assert np.all(np.isfinite(found[2]))


def test_only_what_fits_is_packed():
    """Tiles are not cut: other weights stay in the file and are multiplied in f32."""
    p = Program(seed=7)
    for shape, format in (((24, 256), "q4_k"), ((16, 320), "q8_0"), ((16, 96), "q5_0"), ((16, 64), "f16")):
        y = node("linear", p.input("x", 2, shape[1]), p.weight("w", *shape, format=format))
        fits = shape[0] % TILE == 0 and format in PACKED and shape[1] % PACKED[format] == 0
        module = optimise(p.module(y), form_of("all", PACKING))
        assert any(n.op == "quantize" for n in topological(module.roots)) == fits
        wanted = p.exact(y, 2)
        assert np.linalg.norm(p.run(y, 2, weights="packed") - wanted) <= 0.02 * np.linalg.norm(wanted)


# --- packing itself ---------------------------------------------------------------------------------------


def packed_by_numpy(name: str, stored: np.ndarray) -> np.ndarray:
    """What packing makes of rows [N, bytes], told byte by byte."""
    how = packing(name, stored.shape[1] // formats.get(name).bytes * formats.get(name).elements)
    rows, units = len(stored), stored.shape[1] // how.stored_bytes
    old = stored.reshape(rows // TILE, TILE, units, how.stored_bytes)
    old = np.pad(old, [(0, 0)] * 3 + [(0, how.bytes - how.stored_bytes)])
    new = np.zeros_like(old)
    for (field, _), piece in how.pieces.items():
        part = old[..., piece.source : piece.source + piece.field.length]
        if field == how.spread:
            bits = np.unpackbits(part, axis=-1, bitorder="little").reshape(*part.shape[:-1], 8, 4)
            part = np.packbits(np.moveaxis(bits, -1, -2), axis=-1, bitorder="little")[..., 0]
        new[..., piece.at : piece.at + piece.field.length] = part
    words = new.reshape(rows // TILE, TILE, units, how.bytes // 4, 4)
    turned = np.moveaxis(words, 1, 3)  # [tiles, units, words, rows, bytes]
    placed = np.empty_like(turned)
    placed[:, :, [how.order[word] for word in range(how.bytes // 4)]] = turned
    return placed.reshape(-1)


@pytest.mark.parametrize("target", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("format", BLOCKS)
def test_bytes_are_moved_and_none_is_made(format, target):
    p = Program(seed=8)
    p.weight("w", 3 * TILE, 1024, format=format)
    weight = Stored("w", "pack", format, (3 * TILE, 1024))
    stored = p.tensors["w"][1]
    forgotten: list[str] = []
    made = Packed(Weights(lambda name: p.tensors[name][1], forgotten.append), target, threads=2)
    with made.making([weight]):
        pass
    assert made.nbytes == stored.nbytes
    assert forgotten == ["w"]
    wanted = packed_by_numpy(format, stored.reshape(3 * TILE, formats.row_bytes(format, 1024)))
    assert np.array_equal(made.arrays["w"], wanted)


@pytest.mark.parametrize(
    ("format", "columns", "unit"),
    [("q6_k", 2816, 212), ("q6_k", 512, 420), ("q5_0", 96, 24), ("mxfp4", 2880, 36), ("mxfp4", 96, 20)],
)
def test_rows_that_do_not_come_out_even_are_filled_up(format, columns, unit):
    p = Program(seed=14)
    p.weight("w", TILE, columns, format=format)
    weight = Stored("w", "pack", format, (TILE, columns))
    made = Packed(p.weights, HOST, threads=2)
    with made.making([weight]):
        pass
    how = packing(format, columns)
    assert how.bytes == unit
    assert made.nbytes == packed_bytes(weight) == TILE * unit * (columns // how.elements)
    stored = p.tensors["w"][1].reshape(TILE, formats.row_bytes(format, columns))
    assert np.array_equal(made.arrays["w"], packed_by_numpy(format, stored))


def test_every_field_has_its_place():
    for name in BLOCKS:
        how = packing(name, 1024)
        taken = sorted((piece.at, piece.at + piece.field.length) for piece in how.pieces.values())
        assert taken[0][0] == 0
        assert all(end == start for (_, end), (start, _) in pairwise(taken))
        assert taken[-1][1] == how.bytes
        assert how.bytes % 4 == 0
        assert sorted(how.order.values()) == list(range(how.bytes // 4))


def test_one_row_reads_weights_from_front_to_back():
    """The first uses of a unit's words of elements, block by block, are in the order of their places."""
    for name in BLOCKS:
        how = packing(name, 1024)
        assert sorted(e for span in how.spans for e in span) == list(range(0, how.format.elements, 4))
        for block in range(how.blocks):
            used = dict.fromkeys(word for span in how.spans for e in span for word in how.words(block, e))
            places = [how.order[word] for word in used]
            assert places == list(range(places[0], places[0] + len(places)))


# --- other machines, and the program -----------------------------------------------------------------------


@pytest.mark.parametrize("target", [ARM, PLAIN], ids=["aarch64", "x86-64"])
@pytest.mark.parametrize("format", ["q5_0", "mxfp4"])
def test_code_for_other_machines_is_whole(format, target):
    p = Program(seed=9)
    y = node("linear", p.input("x", 2, 512), p.weight("w", 16, 512, format=format))
    engine = CpuEngine(p.module(y), p.weights, Options(context=8, chunk=4, weights="packed"), HOST)
    plans = {"prefill": engine.plan("prefill")}
    emitter = Emitter(target)
    for name, plan in plans.items():
        emitter.program(name, plan, layout_of(list(plans.values())))
    assert undefined(jit.compile_object(emitter.module, target)) <= {"sched_yield", "memcpy", "memset", "memmove"}
    engine.close()


def test_laptops_without_avx512_multiply_bytes_in_one_instruction():
    target = Target(PLAIN.triple, "alderlake", "+avx2,+fma,+f16c,+avxvnni", 8)
    module = ir.Module()
    module.triple = target.triple
    emit_inner(module, target, packing("q8_0", 1024), 1, 16, 128).linkage = "external"
    code = target.machine().emit_assembly(llvm.parse_assembly(str(module)))
    assert code.count("vpdpbusd") == 2 * 2 * 2 * 8  # planes of bytes, halves of 16 rows, blocks of a unit, words
    assert "zmm" not in code
    assert target.multiplies_bytes


def test_the_program_says_it():
    p = Program(seed=10)
    y = node("linear", p.input("x", 2, 256), p.weight("w", 32, 256, format="q4_k"))
    trace = Trace()
    module = optimise(p.module(y), form_of("all", PACKING), trace)
    assert trace.hits["integers"] == {"integer-linear": 1}
    text = print_module(module)
    assert "pack(@w[32, 256]:q4_k)" in text
    assert f") {{tile = {ROWS}, bits = 16, block = 128}} : [T, 256] q8" in text
    assert parse_module(text) == module
    assert isinstance(module, Module)
    assert "quantize" not in print_module(optimise(p.module(y), Form()))


def test_one_order_for_all_experts_of_a_layer():
    p = Program(seed=11)
    ids = node("top", p.input("scores", 2, 6), k=3)
    x = p.input("x", 2, 64)
    for name in ("up", "down"):
        x = node("expert_linear", x, p.weight(name, 6, 64, 64, format="q8_0"), ids)
    module = p.module(node("combine", x, node("take", p.input("scores", 2, 6), ids)))
    many, one = (topological(optimise(module, form_of(form, PACKING)).roots) for form in ("all", "decode"))
    (order,) = (item for item in many if item.op == "group")
    assert order["experts"] == 6
    assert order.shape == (T * 3,)
    assert sum(order in item.args for item in many if item.op == "fused") == 2
    assert not any(item.op == "group" for item in one)
