"""How `--kv` is read, and what it makes of a program."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from briolette.compiler.codecs import codec_named
from briolette.compiler.cost import kv_token_bytes
from briolette.compiler.errors import BrioletteError
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import topological
from briolette.compiler.pipeline import front
from briolette.compiler.policy import PRESETS, Keep, Types, policy_named
from briolette.compiler.rules.cache import kept
from briolette.compiler.text import parse_module, print_module
from briolette.engine.bench.sizes import sizes
from briolette.engine.gguf import open_gguf
from briolette.engine.tracing.weights import reader
from briolette.spec import syntax

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models"


@pytest.fixture(scope="module")
def model():
    file = open_gguf(ORACLE / "gemma4_donors.gguf")
    return file, front(syntax.load(syntax.shipped()["gemma4"]), file.header)


def keeps(model, text: str) -> dict[int, Keep]:
    return policy_named(text).keeps(model[1])


def kinds(model) -> dict[str, set[int]]:
    return {name: set(layers) for name, layers, _ in model[1].kinds}


def test_a_type_is_every_layers_and_keeps_nothing_beside(model):
    for dtype in ("f32", "f16", "bf16"):
        assert set(keeps(model, dtype).values()) == {Keep(dtype, dtype)}


def test_kinds_have_types_and_others_bf16(model):
    found = keeps(model, "global=k:tq6,v:tq4")
    for slot, keep in found.items():
        if slot in kinds(model)["global"]:
            assert keep == Keep("tq6", "tq4", 16, 128)
        else:
            assert (keep.k, keep.v, keep.near) == ("bf16", "bf16", False)


def test_the_more_particular_entry_holds(model):
    every, local = set(keeps(model, "f16")), kinds(model)["local"]
    one = max(every & local)
    found = keeps(model, f"all=tq2;sliding=tq3;local=tq4;{one}=f16;sink=0;recent=0")
    assert found[one].k == "f16"
    assert {found[slot].k for slot in (every & local) - {one}} == {"tq4"}
    assert {found[slot].k for slot in every - local} == {"tq2"}
    assert {keep.v for keep in keeps(model, f"0-{max(every)}=tq4;local=tq5").values()} == {"tq4"}


def test_eden_and_rotation_are_switches(model):
    assert set(keeps(model, "all=tq4;scale=eden;sink=0;recent=0").values()) == {Keep("tq4_eden", "tq4_eden")}
    turned, plain = (keeps(model, f"global=q8_0;rotate={switch}") for switch in ("on", "off"))
    assert {slot for slot, keep in turned.items() if keep.rotates("k")} == kinds(model)["global"] & turned.keys()
    assert not any(keep.rotates("v") for keep in plain.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_every_shipped_shape(model, preset):
    assert keeps(model, preset).keys() == keeps(model, "f16").keys()


def test_entries_after_a_preset_hold_in_place_of_its_own(model):
    preset, changed = keeps(model, "balanced"), keeps(model, "balanced; sink=2; sliding=tq4")
    for slot, keep in changed.items():
        if slot in kinds(model)["global"]:
            assert keep == replace(preset[slot], sink=2)
        else:
            assert (preset[slot].k, keep.k) == ("tq8", "tq4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tq9", "there is no KV cache type `tq9`"),
        ("all=tq9", "tq9"),
        ("everywhere=tq4", "there are no layers `everywhere`; there are local, global"),
        ("99=tq4", "no layer of 99 has a cache of its own"),
        ("all=k:tq4", "k:TYPE,v:TYPE"),
        ("all=tq4;all=tq5", "given twice"),
        ("all=tq4;sink=many", "sink is a number"),
        ("all=tq4;scale=best", "scale is norm or eden"),
        ("all=tq4;nonsense", "no entry"),
        ("balanced;nonsense", "no entry"),
        ("balanced;sink=1;sink=2", "given twice"),
    ],
)
def test_what_is_no_policy_is_said(model, text, said):
    with pytest.raises(BrioletteError, match=said.replace("(", r"\(")):
        keeps(model, text)


def test_heads_that_a_codec_cannot_take_are_named():
    odd = open_gguf(ORACLE / "gemma4_e2b.gguf")
    module = front(syntax.load(syntax.shipped()["gemma4"]), odd.header)
    with pytest.raises(BrioletteError, match=r"K of global layers, whose heads have 24 values .*power of two.*bf16"):
        policy_named("global=tq4").keeps(module)


def test_the_rewriting_is_seen_and_counted(model):
    hits: Counter[str] = Counter()
    done = kept(model[1], "global=k:tq6,v:tq4;sink=1;recent=2", hits)
    order = topological(done.roots)
    writes = [n for n in order if n.op == "cache_write"]
    owners = [slot for slot in keeps(model, "f16") if slot in kinds(model)["global"]]
    assert {n["slot"] for n in writes if n.type.dtype == "tq6" and n["plane"] == "k"} == set(owners)
    assert {n["plane"] for n in writes if n["slot"] in owners} == {"k", "v", "near_k", "near_v"}
    reading = [n for n in order if n.op == "attend" and len(n.args) == 6]
    assert reading
    assert {(n["sink"], n["recent"]) for n in reading} == {(1, 2)}
    assert hits["cache-near"] == len(reading)
    assert min(hits["cache-rotate"], hits["cache-type"]) > 0
    assert parse_module(print_module(done)).outputs == done.outputs


def test_rotation_changes_nothing_but_roundings(model):
    """With every position near, codes are never read: what is left is turning, there and back, in bf16."""
    file, module = model
    weight = reader(file.header.tensors, file.tensor_bytes)
    tokens = np.arange(3, 15) % 50

    def logits(policy: str):
        return Interpreter(weight).step(kept(module, policy).outputs, tokens, 0)[0]

    exact = logits("f32")
    rounded, near, far = (
        np.abs(logits(policy) - exact).mean()
        for policy in ("bf16", "full=tq2;sink=0;recent=1000", "full=tq2;sink=0;recent=0")
    )
    assert near < 2 * rounded < far / 2


def test_bytes_of_a_position(model):
    module = model[1]
    plain, coded = (kv_token_bytes(kept(module, policy)) for policy in ("f16", "all=k:tq6,v:tq4"))
    for slot, size in plain.items():
        heads = 2  # of K and of V
        assert coded[slot] < size
        assert coded[slot] == pytest.approx(size / 2 / heads * (6 + 4) / 8 + 2 * scales(module, slot))
    assert codec_named("tq6").bits == 6


def scales(module, slot: int) -> int:
    """How many vectors a position has in a layer."""
    writes = {(n["slot"], n["plane"]): n for n in topological(module.roots) if n.op == "cache_write"}
    return sum(int(writes[slot, plane].shape[1]) for plane in ("k", "v"))


@pytest.fixture(scope="module")
def shared():
    """A model whose global layers have no projection for V; two of the eight pairs of a head turn."""
    file = open_gguf(ORACLE / "gemma4_moe.gguf")
    return file, front(_gemma4(), file.header)


def _gemma4():
    return syntax.load(syntax.shipped()["gemma4"])


def test_k_and_v_kept_once_are_k_and_v(shared):
    file, module = shared
    weight, tokens = reader(file.header.tensors, file.tensor_bytes), np.arange(3, 15)

    def logits(policy: str):
        return Interpreter(weight).step(kept(module, policy).outputs, tokens, 0)[0]

    hits: Counter[str] = Counter()
    done = kept(module, "global=kv:f32;local=f32;turning=2;sink=0;recent=0", hits)
    layers = [slot for slot in keeps(shared, "f16") if slot in kinds(shared)["global"]]
    assert hits["cache-once"] == len(layers) > 0
    sizes = {(n["slot"], n["plane"]): n.shape[2] for n in topological(done.roots) if n.op == "cache_write"}
    assert {sizes[slot, "k"] for slot in layers} == {4}
    assert {sizes[slot, "v"] for slot in layers} == {16}
    apart = logits("f32")
    for policy in ("global=kv:f32;local=f32;turning=2", "global=kv:f32;local=f32;turning=2;sink=0;recent=0"):
        assert np.abs(logits(policy) - apart).max() <= 1e-5 * np.abs(apart).max()
    wrong = logits("global=kv:f32;local=f32;turning=1")  # one pair that turns is taken for one that does not
    assert np.abs(wrong - apart).max() > 1e-3 * np.abs(apart).max()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("local=kv:f32;turning=2", "local layers cannot keep K and V once: their V is not what K is made of"),
        ("global=kv:f32", "rope_freqs.weight, which is not at hand: say how many"),
        ("balanced;once=tqkv6r6;turning=2", "4 rotary values, and 16 in all, are no blocks"),
        ("balanced", "turning=N, which may follow a preset"),
        ("global=tqkv6r6;turning=2", "4 rotary values, and 16 in all, are no blocks"),
        ("global=kv:tq4,v:tq4;turning=2", "kv:TYPE for both"),
    ],
)
def test_what_cannot_be_kept_once_is_said(shared, text, said):
    with pytest.raises(BrioletteError, match=said):
        keeps(shared, text)


def test_layers_that_could_keep_both_once_go_by_that(shared, model):
    layers = {slot for slot in keeps(shared, "f16") if slot in kinds(shared)["global"]}
    found = keeps(shared, "once=kv:bf16;full=f16;turning=2")
    assert {slot for slot, keep in found.items() if keep.pairs == 2} == layers
    assert not any(keep.pairs for keep in keeps(model, "once=kv:bf16;full=f16;turning=2").values())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_both_once_where_blocks_of_codes_fit(shared, preset):
    """Heads of 16 are too small: they go by what the preset says of `full`. True sizes have blocks of 128."""
    small, large = keeps(shared, f"{preset};turning=2"), front(_gemma4(), sizes("gemma4-26b-a4b:6").header)
    found = policy_named(f"{preset};turning=64").keeps(large)
    assert not any(keep.pairs for keep in small.values())
    assert {slot: (keep.pairs, keep.k[3:], keep.v[3:]) for slot, keep in found.items() if keep.pairs} == {
        5: (64, "_128", "_128")
    }


def test_codes_of_both_have_blocks_of_their_own():
    assert policy_named("all=tqkv6r4").layers["all"] == Types("tq4", "tq6", once=True)
    assert policy_named("all=kv:tq5;scale=eden").layers["all"] == Types("tq5_eden", "tq5_eden", once=True)
