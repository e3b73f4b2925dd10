"""`parse(format(tree)) == tree`, `format` has a fixed point, and no comment gets lost."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import architectures, expressions

from briolette.spec import tree as t
from briolette.spec.format import expression, format
from briolette.spec.syntax import load, parse, shipped


@pytest.mark.parametrize("name", shipped())
def test_shipped_files_are_formatted(name: str) -> None:
    path = shipped()[name]
    assert format(load(path)) == path.read_text(encoding="utf-8")


@given(architectures())
@settings(max_examples=60, deadline=None)
def test_format_loses_nothing(tree: t.Architecture) -> None:
    text = format(tree)
    again = parse(text)
    assert again == tree
    assert format(again) == text


@given(expressions)
@settings(max_examples=120, deadline=None)
def test_expressions_keep_their_grouping(value: t.Expr) -> None:
    tree = parse(f"arch a\nlet x = {expression(value)}\n")
    assert next(tree.of(t.Let)).value == value


def _squeezed(text: str) -> list[str]:
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_comments_stay_where_they_are(data: st.DataObject) -> None:
    """Comments put above and beside any line of a formatted file are still there after formatting."""
    source = shipped()[data.draw(st.sampled_from(sorted(shipped())))].read_text(encoding="utf-8").splitlines()
    lines = []
    for place, line in enumerate(source):
        for _ in range(data.draw(st.integers(0, 2)) if data.draw(st.booleans()) else 0):
            lines.append(f"# above {place} {len(lines)}")
        free = "#" not in line and line.strip()
        lines.append(line + f"  # beside {place}" if free and data.draw(st.booleans()) else line)
    text = "\n".join(lines)
    assert _squeezed(format(parse(text))) == _squeezed(text)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_comments_inside_statements_are_kept(data: st.DataObject) -> None:
    """Lines broken wherever the language allows it, with a comment at each break."""
    source = shipped()[data.draw(st.sampled_from(sorted(shipped())))].read_text(encoding="utf-8")
    number, dice = 0, Random(data.draw(st.integers(0, 1 << 32)))

    def broken(match: re.Match[str]) -> str:
        nonlocal number
        if match[0][0] in "\"'" or dice.random() < 0.7:
            return match[0]
        number += 1
        note = f" # note {number}\n"
        before = match[0] in (" |>", "else")  # the newline goes before these
        extra = f"# more {number}\n" if number % 3 == 0 else ""
        return note + extra + match[0] if before else match[0] + note + extra

    code = "\n".join(re.sub(r"#.*", "", line) for line in source.splitlines())
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\(|, | \|>|[-+*] |==|\{|;|\belse\b|\}(?= else)", broken, code) + "\n"
    tree = parse(text)
    tidy = format(tree)
    assert Counter(re.findall(r"# \w+ \d+", tidy)) == Counter(re.findall(r"# \w+ \d+", text))
    assert _bare(tidy) == _bare(source)  # shipped files are formatted
    assert parse(tidy) == tree


def _bare(text: str) -> str:
    return re.sub(r"\s*#.*|[\s;]+", "", text)


def test_a_comment_between_brace_and_else_stays_with_the_else() -> None:
    text = "arch a\nblock f(x) -> [T] {\n  if L > 1 {\n    y = x  # one\n  }  # two\n  # three\n"
    text += "  else {  # four\n    y = 2 * x\n  }\n  return y\n}\n"
    assert format(parse(text)).splitlines()[2:9] == [
        "  if L > 1 {",
        "    y = x   # one",
        "  } else {  # four",
        "    # two",
        "    # three",
        "    y = 2 * x",
        "  }",
    ]


def test_comments_are_spelled_as_written() -> None:
    text = "#one\n##  two\n#\n\n\n#   three\narch a  #four\n\n# five\n\n"
    assert format(parse(text)) == "# one\n##  two\n#\n\n#   three\narch a  # four\n\n# five\n"


def test_several_statements_on_a_line() -> None:
    text = "arch a\nblock f(x) -> [T] { y = x; z = y  # why\n  return z }  # end\n"
    assert format(parse(text)) == ("arch a\nblock f(x) -> [T] {\n  y = x\n  z = y     # why\n  return z  # end\n}\n")
