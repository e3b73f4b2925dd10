"""The lines behind a value: everyone who reads a declaration has the lines that it was made of, whoever came first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from briolette.compiler.elaborate import elaborate
from briolette.compiler.ir import nodes_of
from briolette.spec import syntax

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "spec"))
from tiny import SPEC, header


def changed(*changes: tuple[str, str]) -> str:
    text = SPEC
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def behind(text: str, written: str) -> list[set[str]]:
    """For each use of an op that stands on a line with such words: the texts of the lines behind it."""
    lines = text.split("\n")
    module = elaborate(syntax.parse(text), header())
    return [
        {lines[span.line - 1] for span in module.behind[item]}
        for item in nodes_of(module)
        if item.op == "mul" and any(written in lines[span.line - 1] for span in module.origins.get(item, ()))
    ]


@pytest.mark.parametrize(
    ("declared", "made_of"),
    [
        ("let half = 0.5\nlet by = half + 0.25", {"let half = 0.5", "let by = half + 0.25"}),
        ("let half = 0.5\nlet by[j] = half + j", {"let half = 0.5", "let by[j] = half + j"}),
    ],
    ids=["one for all", "one for each layer"],
)
def test_a_value_read_twice_has_the_same_lines_behind_it(declared, made_of):
    by = "by[i]" if "[j]" in declared else "by"
    text = changed(
        ("ignore ", f"{declared}\nignore "),
        ("x + attention(x, i)", f"x + attention(x, i) * {by}"),
        ("return attend(q, ", f"q = q * {by}\n  return attend(q, "),
    )
    inner, outer = behind(text, f"q * {by}"), behind(text, f"attention(x, i) * {by}")
    assert inner
    assert outer
    assert all(lines >= made_of for lines in (*inner, *outer))


def test_an_entry_has_the_lines_of_its_kind_behind_it():
    text = changed(
        ("kind near when local[i] { window = W }", "kind near when local[i] { window = W; by = 2 }"),
        ("kind far otherwise { window = none }", "kind far otherwise { window = none; by = 3 }"),
        ("return attend(q, ", "q = q * by\n  k = k * by\n  return attend(q, "),
        ("  cache[i] <- k, v\n", ""),
        ("k = k * by\n", "k = k * by\n  cache[i] <- k, v\n"),
    )
    found = [*behind(text, "q * by"), *behind(text, "k * by")]
    assert len(found) == 4  # two kinds
    assert all('param local[i] = "pattern" or false' in lines for lines in found)


def test_a_condition_is_behind_each_statement_under_it():
    text = changed(
        ("ignore ", "let wide = hd > 1\nlet half = 0.5\nignore "),
        ("  cache[i] <- k, v", "  if wide {\n    q = q * half\n    k = k * 3\n  }\n  v = v * 2\n  cache[i] <- k, v"),
    )
    first, second = behind(text, "q * half")[0], behind(text, "k * 3")[0]
    assert {"let wide = hd > 1", "let half = 0.5"} <= first
    assert "let wide = hd > 1" in second
    assert "let half = 0.5" not in second  # that is the other statement's
    assert "let wide = hd > 1" not in behind(text, "v * 2")[0]  # which stands under no condition
