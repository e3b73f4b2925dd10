"""Two programs on a page: a model's report with another beside it, and the page of `diff`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pages import MODELS, briolette, data_of
from test_page import parsed

MODEL = MODELS / "gemma4_e2b.gguf"
CEILINGS = ("--bandwidth", 40, "--peak", 100)


def diff_of(text: str) -> str:
    found = re.search(r'<section id="diff">(.*?)</section>', text, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_report_with_another_beside_it(tmp_path):
    out = tmp_path / "page.html"
    briolette("report", MODEL, "gemma3", "-o", out, *CEILINGS)
    text = out.read_text(encoding="utf-8")
    parsed(text)
    told = diff_of(text)
    assert "<h2>Beside gemma3</h2>" in told
    assert "<td class=del>mul(%z, layer_output_scale)</td><td></td>" in told  # gone: nothing stands on the other side
    assert data_of(text)["blocks"]  # the report itself is whole


def test_a_report_beside_itself_has_no_difference(tmp_path):
    out = tmp_path / "page.html"
    briolette("report", MODEL, MODEL, "-o", out, *CEILINGS)
    assert "There is no difference." in diff_of(out.read_text(encoding="utf-8"))


def test_the_other_must_be_something(tmp_path):
    out = tmp_path / "page.html"
    assert "none.gguf is no file" in briolette("report", MODEL, "none.gguf", "-o", out, code=2)
    assert not out.exists()


def test_pages_with_differences_open(browser, tmp_path):
    """In the browser: side by side at a desk, readable on a phone, nothing wider than the page."""
    beside, diff = tmp_path / "beside.html", tmp_path / "diff.html"
    briolette("report", MODEL, "gemma3", "-o", beside, *CEILINGS)
    briolette("diff", "gemma2", "gemma3", "--html", diff, code=1)
    for page in (beside, diff):
        for width, height in ((1280, 900), (390, 800)):
            browser.screen(width, height)
            browser.open(page)
            assert browser.run("document.querySelectorAll('table.diff').length") > 3
            assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
            assert browser.problems() == []
    browser.click("nav a[href='#block-main']")
    assert browser.run("location.hash") == "#block-main"
    marks = browser.run("[...document.querySelectorAll('.diff mark')].map(m => m.textContent).join(' ')")
    assert "softcap" in marks
    assert len(browser.picture(tmp_path / "diff.png")) > 10_000
