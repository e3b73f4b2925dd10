"""The tables beside the specs: they parse, name what there is, leave out little, and mistakes in them have a line."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header, TensorInfo
from briolette.compiler.labels import labels
from briolette.compiler.pipeline import front
from briolette.engine.gguf import open_gguf
from briolette.engine.recorders import recording
from briolette.engine.recorders.config import settings
from briolette.engine.recorders.recording import Reference, open_reference
from briolette.engine.recorders.table import SECTIONS, Theirs, beside, chosen, load, parse
from briolette.spec import syntax

ORACLE = Path(__file__).parents[1] / "oracle"
sys.path.insert(0, str(ORACLE))
from catalog import MODELS, config_of  # noqa: E402

ARCHITECTURES = sorted(syntax.shipped())
VALUES = ("transformers values", "llama.cpp values")
# Values of these ops belong in a trace: what reads weights, and what mixes tokens or experts.
OPS = frozenset({"embed", "linear", "expert_linear", "rms_norm", "rope", "attend", "softmax", "top", "combine"})
# Of those, what cannot be seen elsewhere: tables are scaled as they are read, and experts run inside one module.
UNSEEN = {
    "transformers values": {"token_embd", "per_layer_token_embd", "blk.{i}.experts.rms_norm.1"}
    | {f"blk.{{i}}.ffn_{name}_exps" for name in ("gate", "up", "gate_up", "down")},
    "llama.cpp values": {"blk.{i}.experts.rms_norm.1"},
}


def path(name: str) -> Path:
    return ORACLE / "models" / f"{name}.gguf"


def fused(header: Header) -> Header:
    """The header with q, k and v of every layer that has the three in one tensor."""
    tensors = dict(header.tensors)
    for name, q in header.tensors.items():
        parts = [name.replace("attn_q.", f"attn_{x}.") for x in "qkv"]
        if name.endswith(".attn_q.weight") and all(part in tensors for part in parts):
            rows = sum(tensors.pop(part).shape[0] for part in parts)
            whole = name.replace("attn_q.", "attn_qkv.")
            tensors[whole] = TensorInfo(whole, (rows, q.shape[1]), q.format)
    return dataclasses.replace(header, tensors=tensors)


@pytest.fixture(scope="module")
def references() -> dict[str, list[Reference]]:
    """By architecture: every tiny model, and the first once more with fused attention weights."""
    found: dict[str, list[Reference]] = {name: [] for name in ARCHITECTURES}
    for name, model in MODELS.items():
        found[model.arch].append(open_reference(str(path(name)), [2, 5]))
    for group in found.values():
        first = group[0]
        file = dataclasses.replace(first.file, header=fused(first.file.header))
        module = front(syntax.load(syntax.shipped()[file.header.architecture]), file.header)
        group.append(dataclasses.replace(first, file=file, module=module, nodes=labels(module), values={}))
    return found


def stem(label: str) -> str:
    return re.sub(r"^blk\.\d+", "blk.{i}", label).split("'")[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_spec_has_a_table_with_every_section(name):
    table = load(beside(syntax.shipped()[name]))
    assert tuple(table.lines) == SECTIONS


@pytest.mark.parametrize("section", VALUES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_label_is_one_of_some_model(references, name, section):
    known = {re.sub(r"^blk\.\d+", "blk.{i}", label) for r in references[name] for label in r.nodes}
    for row in load(beside(syntax.shipped()[name])).rows[section]:
        for choice in row.ours:
            assert set(choice) <= known, f"line {row.line}"


@pytest.mark.parametrize("section", VALUES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_little_is_left_out(references, name, section):
    """Of every model all that reads weights or mixes tokens, but for what cannot be seen."""
    for reference in references[name]:
        seen = {reference.nodes[label] for label in reference.wanted(section).values()}
        wanted = {label: node for label, node in reference.nodes.items() if node.op in OPS}
        missed = {stem(label) for label, node in wanted.items() if node not in seen}
        # A value with two names is covered by either.
        missed -= {stem(label) for label, node in wanted.items() if node in seen}
        assert missed <= UNSEEN[section]
        blocks = {f"blk.{i}.layer" for i in range(reference.layers)} | {"output_norm", "main"}
        assert {reference.nodes[label] for label in blocks if label in reference.nodes} <= seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_has_a_parameter(references, name):
    for reference in references[name]:
        rows = reference.table.unrolled("transformers weights", reference.layers)
        there = reference.file.header.tensors
        named = {part for row in rows for part in chosen(row, there) or ()}
        assert {tensor.name for tensor in reference.module.tensors} <= named


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_is_what_the_model_was_made_with(name):
    """The oracle's models were made by transformers from these settings; the file's keys give them back."""
    header, model = open_gguf(path(name)).header, MODELS[name]
    made, table = config_of(model), load(beside(syntax.shipped()[model.arch]))
    found = settings(table, "transformers config", header, made["num_hidden_layers"])
    common = {key: made[key] for key in made.keys() & found.keys() if made[key] is not None}
    assert len(common) >= 8
    for key, value in common.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    if "layer_types" in made:
        assert "layer_types" in common
    flat = {"full_attention": found["rope_parameters"]} if "rope_theta" in found["rope_parameters"] else None
    rope = flat or found["rope_parameters"]
    assert rope["full_attention"]["rope_theta"] == pytest.approx(made["theta"])
    assert rope["full_attention"]["rope_type"] == ("linear" if "linear_factor" in made else "default")
    assert rope["full_attention"].get("factor", 1) == made.get("linear_factor", 1)
    if "theta_swa" in made:
        assert rope["sliding_attention"]["rope_theta"] == pytest.approx(made["theta_swa"])


def test_a_line_of_every_form():
    text = """# a table
[transformers weights]
head.weight + 1 = output_norm.weight
a.q, pairs(a.k) = qkv.weight or q.weight, k.weight
[transformers values]
layers.{i}.* = blk.{i}.*:
  output 2 of router = experts.e or experts.r'2  # why
  scale = layer_output_scale.weight or 1
logits = main
"""
    table = parse(text, Path("t.peers"))
    head, fused_row = table.rows["transformers weights"]
    assert head.theirs == (Theirs("head.weight", change="plus one"),)
    assert fused_row.theirs == (Theirs("a.q"), Theirs("a.k", change="pairs"))
    assert fused_row.ours == (("qkv.weight",), ("q.weight", "k.weight"))
    assert chosen(fused_row, {"q.weight": 0, "k.weight": 0}) == ("q.weight", "k.weight")
    assert chosen(fused_row, {"q.weight": 0}) is None
    rows = list(table.unrolled("transformers values", 2))
    assert [row.theirs[0] for row in rows] == [
        Theirs("layers.0.router", "output", 2),
        Theirs("layers.1.router", "output", 2),
        Theirs("layers.0.scale"),
        Theirs("layers.1.scale"),
        Theirs("logits"),
    ]
    assert rows[1].ours == (("blk.1.experts.e",), ("blk.1.experts.r'2",))
    assert chosen(rows[2], {}) == ("1",)
    assert [row.line for row in rows] == [7, 7, 8, 8, 9]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = b", "t.peers:1:1: this line is in no section"),
        ("[transformer values]", "did you mean [transformers values]?"),
        ("[llama.cpp values]\n[llama.cpp values]", "t.peers:2:1: there are two sections"),
        ("[llama.cpp values]\n\nnorm output_norm", "t.peers:3:1: a line is `their name = our label`"),
        ("[llama.cpp values]\n  norm = output_norm", "t.peers:2:3: this line is indented below nothing"),
        ("[llama.cpp values]\nnorm = out put", "`out put` is no label"),
        ("[llama.cpp values]\nthe rope of q of k = q", "`the rope of q of k` is no name of theirs"),
        ("[llama.cpp values]\npairs(q = q", "`pairs(q` is no name of theirs"),
        ("[llama.cpp values]\npears(q) = q", "nothing is called `pears`"),
    ],
)
def test_a_mistake_is_shown_with_its_line(text, says):
    with pytest.raises(BrioletteError, match=re.escape(says)):
        parse(text, Path("t.peers"))


def test_a_mistake_in_the_settings_is_shown_with_its_line():
    header = open_gguf(path("gemma4_moe")).header
    text = "# settings\n\n[transformers config]\nlet rope.theta = 1 + layer_count\n"
    with pytest.raises(BrioletteError, match=r"t\.peers:4:22: `layer_count` has no value here"):
        settings(parse(text, Path("t.peers")), "transformers config", header, 2)


def test_a_setting_that_cannot_be_met_says_why():
    header = open_gguf(path("llama_plain")).header
    header = dataclasses.replace(header, metadata={**header.metadata, "llama.rope.dimension_count": 4})
    with pytest.raises(BrioletteError, match="transformers rotates whole heads"):
        settings(load(beside(syntax.shipped()["llama"])), "transformers config", header, 4)


def test_a_table_that_is_not_there():
    with pytest.raises(BrioletteError, match="the table of what other engines call values"):
        load(Path("nowhere.peers"))


@pytest.mark.parametrize(("tokens", "says"), [([], "there are no tokens to run"), ([2, 99], "token id 99 is outside")])
def test_tokens_that_are_none(tokens, says):
    with pytest.raises(BrioletteError, match=says):
        open_reference(str(path("gemma4_moe")), tokens)


def test_a_file_without_embeddings_is_refused_in_a_sentence(monkeypatch):
    def without(path):
        file = open_gguf(path)
        kept = {name: tensor for name, tensor in file.header.tensors.items() if name != "token_embd.weight"}
        return dataclasses.replace(file, header=dataclasses.replace(file.header, tensors=kept))

    monkeypatch.setattr(recording, "open_gguf", without)
    with pytest.raises(BrioletteError, match=r"token_embd"):
        open_reference(str(path("llama_plain")), [2, 5])


def test_a_release_without_the_class_is_refused_in_a_sentence(monkeypatch, references):
    parts = {
        "torch": (),
        "transformers": (),
        "transformers.initialization": ("no_init_weights",),
        "transformers.masking_utils": ("ALL_MASK_ATTENTION_FUNCTIONS", "AttentionMaskInterface"),
        "transformers.modeling_utils": ("AttentionInterface",),
    }
    for name, holds in parts.items():
        module = ModuleType(name)
        vars(module).update(dict.fromkeys(holds), __version__="0.1")
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "briolette.engine.recorders.transformers", raising=False)
    recorder = import_module("briolette.engine.recorders.transformers")
    monkeypatch.delitem(sys.modules, recorder.__name__)  # nobody else is to see it
    with pytest.raises(BrioletteError, match=r"transformers 0\.1 has no LlamaForCausalLM: `make peers`"):
        recorder.build(references["llama"][0])


def test_two_labels_for_one_value_are_refused(references):
    table = parse("# t\n[llama.cpp values]\na, b = main", Path("t.peers"))
    reference = dataclasses.replace(references["llama"][0], table=table)
    with pytest.raises(BrioletteError, match=r"t\.peers:3:1: one value has one label"):
        reference.wanted("llama.cpp values")


@pytest.mark.parametrize(("recorder", "engine"), [("transformers", "torch"), ("llama_cpp", "llama_cpp")])
def test_an_engine_that_is_not_installed(recorder, engine):
    code = (
        f"import sys, runpy; sys.modules[{engine!r}] = None; sys.argv = ['x'];"
        f"runpy.run_module('briolette.engine.recorders.{recorder}', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == f"error: {engine} is not installed here; `make peers` makes an environment that has it\n"
