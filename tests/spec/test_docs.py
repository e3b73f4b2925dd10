"""The documents say what happens: their architectures are read, and their messages are what a person gets."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny

import briolette
from briolette.compiler.elaborate import elaborate
from briolette.compiler.functions import FUNCTIONS
from briolette.spec.errors import SpecError
from briolette.spec.format import format
from briolette.spec.syntax import parse, parser

DOCS = Path(__file__).parents[2] / "docs"
LANGUAGE = (DOCS / "language.md").read_text(encoding="utf-8")
WALK = (DOCS / "write-an-architecture.md").read_text(encoding="utf-8")
QWEN = tiny.ORACLE / "qwen3_tied"


class Fenced(NamedTuple):
    kind: str
    text: str


def fenced(document: str) -> list[Fenced]:
    return [Fenced(*found) for found in re.findall(r"```(\w*)\n(.*?)```", document, re.DOTALL)]


def test_the_example_of_the_language_is_formatted_and_fits_a_file() -> None:
    (text,) = (block.text for block in fenced(LANGUAGE) if block.kind == "arch")
    tree = parse(text)
    assert format(tree) == text
    elaborate(tree, tiny.header())


def test_every_word_and_function_is_explained() -> None:
    words = {term.pattern.value for term in parser().terminals if term.pattern.type == "str"}
    code = " ".join(re.findall(r"`([^`]+)`|```arch(.*?)```", LANGUAGE, re.DOTALL).__str__().split())
    missing = {word for word in words if word.isalpha() and not re.search(rf"\b{word}\b", code)}
    assert not missing
    for function in FUNCTIONS.values():
        usage = function.usage.replace("scale=1.0", "scale=1")
        if function.name == "attend":  # its second argument is always a cache
            usage = usage.replace("cache,", "cache[i],")
        assert f"`{usage}`" in LANGUAGE


def told(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        elaborate(parse(text, "qwen3.arch"), tiny.oracle_header("qwen3_tied"))
    return str(caught.value) + "\n"


def test_the_message_in_the_language_document() -> None:
    (shown,) = (block.text for block in fenced(LANGUAGE) if block.kind == "text")
    assert shown in (Path(__file__).parent / "misfits.txt").read_text(encoding="utf-8")


def test_the_walk(tmp_path: Path) -> None:
    steps = fenced(WALK)
    for before, after in pairwise(steps):
        if (before.kind, after.kind) == ("arch", "text"):
            assert told(before.text) == after.text
    text = [step.text for step in steps if step.kind == "arch"][-1]
    stored = np.load(QWEN.with_suffix(".npz"))
    errors = []
    for step in steps:
        edits = re.findall(r"^edit\((\".*\"), (\".*\")\)$", step.text, re.MULTILINE)
        for old, new in edits:
            old, new = (part[1:-1].replace("\\n", "\n") for part in (old, new))
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        if edits:
            path = tmp_path / "qwen3.arch"
            path.write_text(text, encoding="utf-8")
            logits = briolette.load(QWEN.with_suffix(".gguf"), spec=path, backend="reference").logits(stored["tokens"])
            errors.append(float(np.linalg.norm(logits - stored["logits"]) / np.linalg.norm(stored["logits"])))
    wrong, right = errors
    assert f"It prints {wrong:.2f}." in WALK
    assert right < 3e-6  # the document's 1.1e-06 depends on numpy's BLAS
