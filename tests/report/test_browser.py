"""A report as a person meets it: opened from a file in headless Chromium, and clicked through."""

from __future__ import annotations

import json
import struct

import pytest

from briolette.compiler.elaborate import elaborate
from briolette.compiler.example import example
from briolette.engine.report.page import Html, table
from briolette.engine.report.page import page as shell
from briolette.engine.report.picture import Layer, picture
from briolette.spec import syntax

WIDE, PHONE = (1440, 900), (390, 844)


@pytest.fixture
def opened(browser, sharing):
    """The page of a model whose layers share caches, freshly opened; nothing may go wrong in it."""
    browser.screen(*WIDE)
    browser.open(sharing.path)
    browser.until("document.querySelector('.part-body:not([hidden])') !== null")
    yield browser
    assert browser.problems() == []


def texts(browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(item => item.textContent)")


def count(browser, selector: str) -> int:
    return browser.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def test_it_opens_whole(opened, sharing):
    assert opened.run("document.title").startswith("gemma4_e2b")
    assert texts(opened, "nav a") == ["Layers", "Spec and program", "Pipeline", "Memory", "Roofline"]
    assert texts(opened, ".block > button b") == [block["name"] for block in sharing.data["blocks"]]
    assert count(opened, ".line") == len(sharing.data["spec"])
    assert texts(opened, "#stages b") == [stage["name"] for stage in sharing.data["stages"]["decode"]]
    assert opened.run("document.querySelector('.spec .line').textContent") == "1" + sharing.data["spec"][0]
    everything = sum(len(block["ops"]) for block in sharing.data["blocks"])
    assert count(opened, ".op") < everything / 2  # rows are made when they are wanted


def test_an_op_shows_its_line_its_tensors_and_what_became_of_it(opened, sharing):
    opened.click("[data-block='ffn.local'] > button")
    block = next(block for block in sharing.data["blocks"] if block["name"] == "ffn.local")
    assert count(opened, "[data-block='ffn.local'] .op") == len(block["ops"])
    op = next(op for op in block["ops"] if "ffn_gate" in op["text"])
    row = f"[data-op='{op['id']}']"
    opened.click(f"{row} .row")
    line, start, end = op["lines"][0]
    assert opened.run("[...document.querySelectorAll('.line.held')].map(line => +line.dataset.line)") == [line]
    quote = texts(opened, f"{row} .quote mark")[0]
    assert quote == sharing.data["spec"][line - 1][start - 1 : end - 1]
    said = texts(opened, f"{row} .more")[0]
    assert "blk.{i}.ffn_gate.weight" in said
    assert "in a linear kernel with" in said
    assert count(opened, f"[data-line='{line}'] .stretch") == 1
    opened.press("Escape")
    assert count(opened, ".held") == 0


def test_a_line_shows_its_ops(opened, sharing):
    line = next(n for n, text in enumerate(sharing.data["spec"], 1) if "attend(" in text)
    wanted = {op["id"] for b in sharing.data["blocks"] for op in b["ops"] if any(at[0] == line for at in op["lines"])}
    opened.click(f"[data-line='{line}']")
    assert set(opened.run("[...document.querySelectorAll('.op.held')].map(op => op.dataset.op)")) == wanted
    assert len(wanted) > 2  # each kind and version has its own
    box = opened.run("(b => [b.top, b.bottom])(document.querySelector('.op.held').getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= WIDE[1]
    opened.click(f"[data-line='{line}']")
    assert count(opened, ".held") == 0


def test_pointing_at_an_op_marks_its_line_and_what_it_reads(opened, sharing):
    op = sharing.data["blocks"][0]["ops"][-1]
    opened.run(f"document.querySelector(\"[data-op='{op['id']}'] .row\").focus()")
    marked = opened.run("[...document.querySelectorAll('.line.near')].map(line => +line.dataset.line)")
    assert marked == sorted({line for line, *_ in op["lines"]})
    assert count(opened, ".op.read") >= 1


def test_search_finds_ops_by_tensor_and_by_line(opened, sharing):
    opened.press("/")
    assert opened.run("document.activeElement.id") == "search"
    opened.type("attn_q_norm")
    everything = [op for block in sharing.data["blocks"] for op in block["ops"]]
    wanted = [op["id"] for op in everything if "attn_q_norm" in op["text"]]
    shown = "[...document.querySelectorAll('.op')].filter(op => op.offsetParent).map(op => op.dataset.op)"
    assert opened.run(shown) == wanted
    seen = opened.run("[...document.querySelectorAll('.block')].filter(b => b.offsetParent).map(b => b.dataset.block)")
    assert set(seen) == {op.split("/")[0] for op in wanted}
    assert texts(opened, "#found") == [f"{len(wanted)} of {len(everything)} ops"]
    opened.press("Escape")
    assert texts(opened, "#found") == [f"{len(everything)} ops"]
    opened.press("/")
    opened.type("no such op")
    assert opened.run(shown) == []


def test_stages_and_kernels(opened, sharing):
    opened.click("[data-stage='fused']")
    opened.until("document.querySelector('[data-part=\"layer 0\"]') !== null")
    assert texts(opened, "#stages [aria-selected=true] b") == ["fused"]
    hits = sharing.data["stages"]["decode"][-1]["hits"]
    assert texts(opened, "#stage .hits b") == [f"{n} \u00d7 {rule}" for rule, n in hits.items()]
    opened.click("[data-part='layer 0']")
    assert "fused(" in texts(opened, "[data-part='layer 0'] + .part-body")[0]
    opened.click("[data-block='ffn.local'] > button")
    op = next(op for op in sharing.data["blocks"] if op["name"] == "ffn.local")["ops"][1]
    opened.click(f"[data-op='{op['id']}'] .row")
    kernel = texts(opened, f"[data-op='{op['id']}'] .story .link")[0]
    opened.click(f"[data-op='{op['id']}'] .story .link")
    opened.until(f"document.querySelector('[data-part=\"{kernel}\"][aria-expanded=true]') !== null")
    assert f"{op['op']}(" in texts(opened, f"[data-part='{kernel}'] + .part-body")[0]


def test_the_form_changes_costs_stages_and_tables(opened):
    before = texts(opened, ".block .sum")
    assert opened.run("document.querySelector('.of-form[data-form=prefill]').offsetParent") is None
    opened.click(".switch [data-form='prefill']")
    opened.until("document.querySelector('#stages').textContent.includes('last-token-only')")
    assert texts(opened, ".block .sum") != before
    assert opened.run("document.querySelector('.of-form[data-form=decode]').offsetParent") is None
    assert opened.run("document.querySelector('.of-form[data-form=prefill]').offsetParent !== null")


# Comes true when the page scrolls no more: until then, what is clicked at moves away.
STILL = """new Promise(done => {
    let last = -1;
    (function look() { if (scrollY === last) done(true); else { last = scrollY; setTimeout(look, 150); } })();
})"""


def test_the_picture_and_the_charts_lead_to_the_program(opened):
    opened.run("document.querySelector('.stack .part.other').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    name = opened.run("document.querySelector('.stack .part.other').dataset.block")
    assert opened.run(f"document.querySelector(\".block[data-block='{name}'] > button\").ariaExpanded") == "true"
    op = opened.run("document.querySelector('.times .link').dataset.op")
    opened.run(STILL)
    opened.click(".times .link")
    opened.until(f"document.querySelector('.op.held')?.dataset.op === {json.dumps(op)}")


def test_the_keyboard_reaches_everything(opened, sharing):
    lines = "document.querySelectorAll('.line.has')"
    opened.run(f"{lines}[0].focus()")
    opened.press("ArrowDown")
    assert opened.run(f"document.activeElement === {lines}[1]")
    opened.press("Enter")
    assert opened.run("document.activeElement.classList.contains('held')")
    unreachable = "[...document.querySelectorAll('[onclick]')].length"
    assert opened.run(unreachable) == 0
    assert opened.run("[...document.querySelectorAll('button')].every(b => b.tabIndex >= 0 || b.role === 'tab')")
    opened.run("document.querySelector('#stages [aria-selected=true]').focus()")
    opened.press("ArrowRight")
    opened.until("document.querySelector('#stages [aria-selected=true]').dataset.stage === 'unrolled'")


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_light_dark_and_small(opened, tmp_path, size):
    pictures = {}
    for dark in (False, True):
        opened.screen(*size, dark=dark)
        pictures[dark] = opened.picture(tmp_path / f"{dark}.png")
        assert struct.unpack(">II", pictures[dark][16:24]) == size
        colours = opened.run("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        light = [sum(map(int, c[4:-1].split(", "))) for c in colours]
        assert light[0] < light[1] if dark else light[0] > light[1]
        assert abs(light[0] - light[1]) > 400  # enough contrast to read
    assert pictures[True] != pictures[False]
    assert opened.run("document.documentElement.scrollWidth") <= size[0]  # only what must scrolls sideways


def test_it_prints_with_every_op(opened, sharing):
    pdf = opened.call("Page.printToPDF")["data"]
    assert len(pdf) > 50_000
    everything = sum(len(block["ops"]) for block in sharing.data["blocks"])
    assert count(opened, ".op") == everything


def test_pages_of_other_models_open(browser, page):
    browser.screen(*WIDE)
    browser.open(page.path)
    browser.until("document.querySelector('.part-body:not([hidden])') !== null")
    browser.run("document.querySelector('#open-all').click()")
    assert count(browser, ".op") == sum(len(block["ops"]) for block in page.data["blocks"])
    assert browser.problems() == []


def test_a_shell_of_another_page_opens(browser, tmp_path):
    """Pages that are no report share the shell: its script looks only for what is there."""
    path = tmp_path / "other.html"
    rows = [[Html('<span class="del">a</span>'), Html('<span class="ins">b</span>')]]
    path.write_text(shell("Other", [("one", "One", table(rows, css="diff"))]))
    browser.open(path)
    assert texts(browser, "td") == ["a", "b"]
    assert browser.run("getComputedStyle(document.querySelector('.ins')).backgroundColor") != "rgba(0, 0, 0, 0)"
    assert browser.problems() == []


def test_a_block_is_told_the_bytes_of_its_own_ops(opened, sharing):
    main, layer = (next(b for b in sharing.data["blocks"] if b["name"].split(".")[0] == n) for n in ("main", "layer"))
    for block in (main, layer):
        own = sum(sum(op["cost"]["decode"][1:3]) for op in block["ops"] if not op["calls"])
        told = texts(opened, f"[data-block='{block['name']}'] .sum")[0]
        assert told == opened.run(f"size({own})")
        assert own < sum(block["cost"]["decode"][1:3])  # what it calls is told there


def test_the_layers_of_a_deep_model_scroll_on_a_phone(browser, tmp_path):
    block = next(iter(elaborate(syntax.find("llama"), example("llama")).blocks()))
    layer = picture([Layer(number, 0, block) for number in range(40)], ["local"], "")
    path = tmp_path / "deep.html"
    path.write_text(shell("deep", [("layers", "Layers", layer)]), encoding="utf-8")
    browser.screen(420, 844)
    browser.open(path)
    box = "document.querySelector('.stack').parentNode"
    assert browser.run("document.documentElement.scrollWidth") <= 420
    assert (
        browser.run(f"(s => (s.scrollLeft = 1e6, s.querySelector('svg').getBoundingClientRect().right))({box})") <= 420
    )
    assert browser.run(f"{box}.scrollLeft") > 300
