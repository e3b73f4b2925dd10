"""What is in a report: whole in itself, well-formed, and true to what the compiler says."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import pytest
from pages import MODELS, ROOT, briolette, written

from briolette.backends.formats import element_bytes
from briolette.backends.reading import looked_up
from briolette.compiler.cost import Cost, Costs
from briolette.compiler.ir import Block, Type, nodes_of, topological
from briolette.compiler.ops import node
from briolette.compiler.pipeline import STAGES
from briolette.compiler.rules.fuse import PRODUCTS
from briolette.compiler.rules.integers import Integers, products
from briolette.compiler.rules.simplify import ANGLES, SIMPLIFY
from briolette.compiler.text import print_module
from briolette.engine.gguf import open_gguf
from briolette.engine.memory import plan_memory
from briolette.engine.model import options_for
from briolette.engine.report.ceilings import Machine, machine
from briolette.engine.report.page import Html, embedded, table
from briolette.engine.report.page import page as shell
from briolette.engine.report.picture import Layer, picture
from briolette.engine.report.words import RULES
from briolette.engine.report.words import STAGES as STAGE_WORDS
from briolette.engine.report.work import Work, total, works
from briolette.engine.words import size

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Balance(HTMLParser):
    """Checks that every element is closed where it was opened, and collects what pages could load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def parsed(text: str) -> Balance:
    found = Balance()
    found.feed(text)
    found.close()
    assert not found.open
    return found


def test_the_page_is_well_formed_and_needs_nothing_beside_it(page):
    found = parsed(page.text)
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith("#") and (link == "#" or link[1:] in found.ids) for link in found.links)
    for pattern in (r"https?://", r"@import", r"url\(", r"\bfetch\(", r"XMLHttpRequest", r"\bimport\("):
        assert not re.search(pattern, page.text), pattern


def test_texts_are_escaped(page):
    assert "<img src=x" not in page.text
    assert "a &lt; b &amp; b &gt; c: &lt;/script&gt;" in page.text
    assert page.data["spec"][0].startswith("# if a < b & b > c: </script>")


def test_the_shell_escapes_titles_and_cells_but_not_html():
    found = shell('<a> & "b"', [("one", "<One>", table([["<x>", Html("<b>y</b>")]]))], {"key": "</script>"})
    parsed(found)
    assert "<title>&lt;a&gt; &amp; &quot;b&quot;</title>" in found
    assert "&lt;x&gt;" in found
    assert "<b>y</b>" in found
    assert '<a href="#one">&lt;One&gt;</a>' in found
    assert json.loads(embedded({"key": "</script>\u2028"})) == {"key": "</script>\u2028"}
    assert "<" not in embedded("</script>")


def lines_of(text: str) -> list[str]:
    """The statements of a printed program, without the spec lines behind them."""
    return sorted(line.split("   # ")[0].strip() for line in text.splitlines() if re.match(r"  %", line))


def test_every_op_of_block_form_is_there(page):
    ours = [f"{op['name']} = {op['text']} : {op['type']}" for block in page.data["blocks"] for op in block["ops"]]
    assert sorted(ours) == lines_of(print_module(page.elaborated))
    lines = {int(n) for n in re.findall(r"\.arch:(\d+)", print_module(page.elaborated))}
    found = {line for block in page.data["blocks"] for op in block["ops"] for line, *_ in op["lines"]}
    assert lines <= found
    assert found == {int(n) for n in re.findall(r'class="line has" data-line="(\d+)"', page.text)}


def test_spans_show_the_expression(page):
    """Each op of one line points at text that names what it does."""
    told = {"attend": "attend(", "rms_norm": "rms(", "softcap": "softcap(", "gelu": "gelu(", "silu": "silu("}
    for block in page.data["blocks"]:
        for op in block["ops"]:
            if op["op"] in told and op["lines"][0][2]:
                line, start, end = op["lines"][0]
                assert told[op["op"]] in page.data["spec"][line - 1][start - 1 : end - 1]


@pytest.mark.parametrize(("form", "tokens"), [("decode", 1), ("prefill", 256)])
def test_costs_are_the_compilers(page, form, tokens):
    """All ops together cost what the program costs, but for the tables of angles, which come from no line."""
    module = page.traces[form].modules["cache"]
    costs = Costs(module, element_bytes, tokens, 256)
    new = sum((costs.of(item) for item in topological(module.roots) if item.op == "rope_table"), Cost())
    whole = costs.total()
    ops = [op for block in page.data["blocks"] for op in block["ops"] if not op["calls"]]
    sums = [sum(op["cost"][form][part] for op in ops) for part in range(3)]
    assert sums == [getattr(whole, part) - getattr(new, part) for part in ("flops", "weights", "cache")]
    assert page.data["blocks"][0]["cost"][form][:3] == [whole.flops, whole.weights, whole.cache]


def test_what_two_blocks_compute_alike_costs_once(tmp_path):
    """The norm in `layer` is the one in `attention`: the program has it once."""
    change = ("y = x + attention(x, i)", "y = x + attention(x, i) + rms(x, attn_norm)")
    found = written(MODELS / "llama_plain.gguf", tmp_path, "--context", 256, change=change)
    assert any(
        "attn_norm" in op["text"] for block in found.data["blocks"] for op in block["ops"] if block["name"] == "layer"
    )
    test_costs_are_the_compilers(found, "decode", 1)


def test_a_call_costs_what_its_block_does_in_the_callers_layers(page):
    main, *blocks = page.data["blocks"]
    layers = next(op for op in main["ops"] if op["op"] == "layers")
    called = [block for block in blocks if block["name"] in layers["calls"]]
    for form in ("decode", "prefill"):
        parts = zip(*(block["cost"][form] for block in called), strict=True)
        assert layers["cost"][form] == pytest.approx([sum(part) for part in parts], rel=1e-9)


def test_a_products_cost_and_tensor_by_hand(sharing):
    """Three layers of this kind and version have this product: 2 N K operations each, and the tensor's bytes."""
    block = next(block for block in sharing.data["blocks"] if block["name"] == "ffn.local")
    op = next(op for op in block["ops"] if "ffn_gate" in op["text"])
    (tensor,) = op["tensors"]
    rows, columns = map(int, re.findall(r"\d+", tensor["shape"]))
    assert tensor["name"] == "blk.{i}.ffn_gate.weight"
    assert list(tensor["formats"]) == ["f32"]
    assert op["cost"]["decode"][:3] == [2 * rows * columns * block["count"], 4 * rows * columns * block["count"], 0]
    assert tensor["bytes"] == 4 * rows * columns * block["count"]


def sections(stage: dict) -> list[dict]:
    return json.loads(zlib.decompress(base64.b64decode(stage["ir"])))


@pytest.mark.parametrize("form", ["decode", "prefill"])
def test_every_stage_is_there_with_its_program(page, form):
    trace, stages = page.traces[form], page.data["stages"][form]
    assert [stage["name"] for stage in stages] == list(STAGES) == list(STAGE_WORDS)
    for stage in stages:
        module = trace.modules[stage["name"]]
        assert stage["nodes"] == sum(1 for _ in nodes_of(module))
        assert stage["hits"] == dict(trace.hits[stage["name"]])
        assert all(RULES[rule] == page.data["rules"][rule] for rule in stage["hits"])
        shown = [text for section in sections(stage) for text, _ in section["rows"]]
        assert sorted(shown) == lines_of(print_module(module))
        lines = {line for section in sections(stage) for _, found in section["rows"] for line in found}
        assert lines
        assert all(page.data["spec"][line - 1].strip() for line in lines)


@pytest.mark.parametrize("form", ["decode", "prefill"])
def test_stories_name_kernels_that_hold_the_op(page, form):
    bodies = {
        block.name: {item.op for item in topological(block.roots)}
        for block in page.traces[form].modules["fused"].blocks()
    }
    named = set()
    for block in page.data["blocks"]:
        for op in block["ops"]:
            groups = op["story"][form]
            assert groups
            for _, _, kernels in (event for group in groups for event in group["events"]):
                named |= set(kernels)
                assert all({"rope": "rotate"}.get(op["op"], op["op"]) in bodies[kernel] for kernel in kernels)
    assert named == {name for name in bodies if not name.startswith("copy")}  # every kernel is some op's


def test_every_rule_has_words():
    names = {rule.name for rule in (*SIMPLIFY, *ANGLES)}
    names |= {rule.name for rule in products(Integers(()))}
    sources = "".join(
        (ROOT / "compiler" / "rules" / f"{file}.py").read_text()
        for file in ("head", "parts", "fuse", "copies", "cache")
    )
    names |= set(re.findall(r'hits\["([\w-]+)"\]', sources)) | {
        f"fuse-{family}" for family in ("rows", *PRODUCTS.values())
    }
    assert names == set(RULES)


def story(page, block: str, text: str, form: str) -> str:
    ops = next(b for b in page.data["blocks"] if b["name"] == block)["ops"]
    op = next(op for op in ops if text in op["text"])
    return json.dumps(op["story"][form])


def test_stories_tell_what_the_rules_did(sharing):
    assert "became rotate by a table of angles, which" in story(sharing, "attention.local", "rope(", "decode")
    assert "kept as f16" in story(sharing, "attention.local", "cache_write", "decode")
    assert "in a linear kernel with" in story(sharing, "ffn.local", "ffn_gate", "decode")
    assert "[T, " in story(sharing, "ffn.local", "ffn_gate", "decode")  # T is 1 from then on
    assert "stands for what that layer wrote" in story(sharing, "attention.local.2", "cache()", "decode")
    assert "only the last token" in story(sharing, "attention.local.2", "attend(", "prefill")
    assert "only the last token" not in story(sharing, "attention.local", "attend(", "prefill")
    assert "only the last token" not in story(sharing, "attention.local.2", "attend(", "decode")


def test_more_kinds_than_colours_keep_their_names():
    x = node("param", name="x", type=Type((1,)))
    kinds = [f"kind{number}" for number in range(8)]
    layers = [Layer(number, number, Block(f"layer.{name}", (x,), x)) for number, name in enumerate(kinds)]
    drawn = picture(layers, kinds, "")
    assert re.findall(r"layer \d, (\w+)", drawn) == kinds
    assert set(re.findall(r'class="(f\d)"', drawn)) == {f"f{colour}" for colour in range(6)}


def test_the_picture_has_every_layer_and_who_shares(sharing):
    layers = re.findall(r'<g class="layer" data-block="([\w.]+)"><title>layer (\d+), (\w+)', sharing.text)
    kinds = {layer: name for name, which, _ in sharing.elaborated.kinds for layer in which}
    assert {int(number): kind for _, number, kind in layers} == kinds
    readers = {layer for layer, block in table_of(sharing.elaborated) if "cache()" in block_text(sharing, block)}
    assert readers
    assert sharing.text.count('class="arc') == len(readers)
    assert "attention.local.2" in sharing.text.split('class="versions"')[1]


def table_of(module):
    return next(item for item in topological(module.roots) if item.op == "layers")["table"]


def block_text(page, block) -> str:
    found = {b["name"]: b for b in page.data["blocks"]}
    inner = [found[name] for op in found[block.name]["ops"] for name in op["calls"]]
    return " ".join(op["text"] for b in inner for op in b["ops"])


def test_memory_is_the_plans(sharing):
    """The parts that are read whole are all stored tensors but those that are looked up in."""
    file = open_gguf(MODELS / "gemma4_e2b.gguf")
    module = sharing.traces["decode"].modules["unrolled"]
    plan = plan_memory(file, module, options_for(file.header, "f16", None, None, 256))
    tables = looked_up(module)
    assert sum(len(file.tensor_bytes(t.name)) for t in module.tensors if t.name not in tables) == plan.weights
    section = sharing.text.split('<section id="memory">')[1].split("</section>")[0]
    assert all(f"KV {kind.kind}" in section for kind in plan.kv)
    assert f"<b>{size(plan.peak)}</b>" in section


def test_work_adds_up_and_meets_the_roof(sharing):
    found = works(sharing.data["blocks"], "decode")
    whole = total(found, "decode")
    ops = [op["cost"]["decode"] for b in sharing.data["blocks"] for op in b["ops"] if not op["calls"]]
    assert (whole.flops, whole.bytes) == (sum(c[0] for c in ops), sum(c[1] + c[2] for c in ops))
    roof = Machine(40e9, 100e9, "", "")
    assert roof.ridge == 2.5
    assert Work("a", "b", "", 100e9, 1e9, 0).seconds(roof) == 1.0  # arithmetic
    assert Work("a", "b", "", 1e9, 30e9, 10e9).seconds(roof) == 1.0  # memory
    seconds = sum(work.seconds(roof) for work in found)
    assert f"about <b>{1 / seconds:,.0f} tokens a second</b>" in sharing.text
    assert "By these figures a step takes about" in sharing.text  # given, not measured
    assert "40.0 GB/s, given with --bandwidth" in sharing.text
    assert "100 GFLOP/s, given with --peak" in sharing.text


def test_ceilings_are_measured_where_they_are_not_given():
    found = machine(None, 7.0)
    assert found.bandwidth > 1e8
    assert "measured: native code reading" in found.bandwidth_from
    assert (found.peak, found.peak_from) == (7e9, "given with --peak")


@pytest.mark.parametrize("ceilings", [(0.001, 1e9), (1e6, 0.001)])
def test_a_roofline_of_any_machine_can_be_drawn(ceilings):
    page = briolette(
        "report", MODELS / "llama_plain.gguf", "--bandwidth", ceilings[0], "--peak", ceilings[1], "-o", "-"
    )
    assert "nan" not in page.split('class="chart roofline"')[1].split("</svg>")[0]


def test_the_page_is_written_where_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--bandwidth", 1, "--peak", 1)
    assert briolette("report", MODELS / "llama_plain.gguf", *given).strip() == "llama_plain.html"
    first = (tmp_path / "llama_plain.html").read_text()
    briolette("report", MODELS / "llama_plain.gguf", "--form", "prefill", *given)
    assert '"form":"decode"' in first
    assert '"form":"prefill"' in (tmp_path / "llama_plain.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["llama_plain.html"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-o", "{}"), "is a folder; say with its name which file"),
        (("-o", "{}/new/"), "is a folder; say with its name which file"),
        (("-o", ""), "the name of the page is empty"),
        (("-o", "{}/no/page.html"), "there is no folder"),
        (("--bandwidth", "inf"), "--bandwidth takes GB/s from 0.001 to 1,000,000, not inf"),
        (("--bandwidth", "nan"), "not nan"),
        (("--peak", "0"), "--peak takes GFLOP/s from 0.001 to 1,000,000,000, not 0"),
        (("--form", "all"), "there is no form `all` of a report; there are decode, prefill"),
        (("--kv", "f8"), "there is no KV cache type"),
        (("-o", str(MODELS / "llama_plain.gguf")), "is the model itself"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, args, message):
    said = briolette("report", MODELS / "llama_plain.gguf", *(arg.format(tmp_path) for arg in args), code=2)
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_an_architecture_is_no_model(tmp_path):
    assert "a report is of a model" in briolette("report", "some.arch", "-o", tmp_path / "x.html", code=2)
