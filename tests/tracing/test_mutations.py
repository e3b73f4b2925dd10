"""Every wrong port of tests/spec/test_quirks.py, traced against the right one: the line that is wrong is named.

A line counts as wrong that the mutation wrote. Where the changed spec does not fit the file any more, it is refused
when it is read; then the error must point at such a line, name it among those that its line rests on, or name
what stood there.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

import pytest
from runs import against, model, recorded
from test_quirks import MUTATIONS, TEXT, Mutation

from briolette.compiler.pipeline import front
from briolette.engine.commands.trace import with_reasons
from briolette.engine.tracing.judge import Finding
from briolette.spec.errors import SpecError
from briolette.spec.syntax import parse, shipped

# What a recorder of transformers' modules gives: a value for most lines, none for the steps within one.
MODULES = re.compile(
    r"main(\.(x|e|g|logits))?|output_norm|blk\.\d+\.(attn_\w+|attention\.[qa]|cache\.[kv]|post_\w+|ffn_\w+|layer"
    r"|layer\.[yz]|experts|experts\.(r|r'2|w|e)|pre_\w+|inp_gate|proj)"
)
# Without values in between, some mistakes look the same on two neighbouring lines: then both are told.
AMBIGUOUS = {"scale ignored", "sum not scaled"}


def written(text: str) -> set[int]:
    """The numbers of the lines that a mutation wrote."""
    before, after = TEXT.split("\n"), text.split("\n")
    changes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return {line + 1 for tag, _, _, start, stop in changes if tag != "equal" for line in range(start, stop)}


def words_taken(text: str) -> set[str]:
    """The names and keys that stood on the changed lines and do no more."""
    before, after = TEXT.split("\n"), text.split("\n")
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))
    old, new = (
        {word for line in lines if line[:1] == sign for word in re.findall(r"[\w.]+", line)} for sign in ("-", "+")
    )
    return {word for word in old - new if len(word) > 2}


def line_of(finding: Finding) -> int:
    assert finding.place is not None
    return finding.place.span.line


VALUES = [m for m in MUTATIONS if m.by != "file"]
REFUSED = [m for m in MUTATIONS if m.by == "file"]


@pytest.mark.parametrize("mutation", VALUES, ids=lambda m: f"{m.row}: {m.what}")
def test_the_wrong_line_is_named(mutation: Mutation) -> None:
    text = mutation.apply()
    found = against(mutation.model, recorded(mutation.model), text)
    assert line_of(found.findings[0]) in written(text)


@pytest.mark.parametrize("mutation", VALUES, ids=lambda m: f"{m.row}: {m.what}")
def test_the_wrong_line_is_named_from_fewer_values(mutation: Mutation) -> None:
    text, right = mutation.apply(), recorded(mutation.model)
    values = {label: value for label, value in right.named().items() if MODULES.fullmatch(label)}
    found = against(mutation.model, replace(right, values=values, about={"precision": "f32"}), text)
    lines = {line_of(found.findings[0])}
    if mutation.what in AMBIGUOUS:
        lines |= set(found.findings[0].through)
    assert lines & written(text)


@pytest.mark.parametrize("mutation", REFUSED, ids=lambda m: f"{m.row}: {m.what}")
def test_a_spec_that_does_not_fit_is_refused_by_the_line(mutation: Mutation) -> None:
    text = mutation.apply()
    tree = parse(text, "changed.arch")
    with pytest.raises(SpecError) as problem:
        front(tree, model(mutation.model).header)
    told = str(with_reasons(problem.value, tree))
    lines = {
        int(number) for number in re.findall(r"changed\.arch:(\d+):|of line (\d+)", told) for number in number if number
    }
    assert lines & written(text) or any(word in told for word in words_taken(text))


def test_nothing_diverges_where_nothing_is_changed() -> None:
    found = against("gemma4_e2b", recorded("gemma4_e2b"), TEXT)
    assert (found.findings, found.missing, found.extra) == ([], [], [])
    assert max(row.local for row in found.rows) < 1e-6


def test_of_two_lines_that_store_the_one_at_fault_is_named() -> None:
    store = "cache[i] <- k, v\n"
    text = shipped()["gemma3"].read_text().replace(store, f"if swa[i] {{ {store} }} else {{ {store} }}\n")
    assert against("gemma3_array", recorded("gemma3_array"), text).findings == []
    wrong = text.replace("<- k, v", "<- v, v", 1)
    line = next(n for n, line in enumerate(wrong.split("\n"), 1) if "<- v, v" in line)
    assert line_of(against("gemma3_array", recorded("gemma3_array"), wrong).findings[0]) == line
