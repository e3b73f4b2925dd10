"""Printed IR of two models, kept as files so that a change of what is compiled is reviewed as a diff.

`pytest tests/compiler/test_golden.py --update-golden` writes them anew. The pages in docs/ show real IR, too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.text import print_module
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden" / "ir"


def stages(model: str, form: Form) -> dict[str, str]:
    header = open_gguf(TESTS / "oracle" / "models" / f"{model}.gguf").header
    trace = Trace()
    optimise(front(architecture(None, header), header, trace), form, trace)
    return {stage: print_module(module, tensors=False) for stage, module in trace.modules.items()}


@pytest.mark.parametrize("stage", ["elaborated", "fused"])
@pytest.mark.parametrize("model", ["gemma4_e2b", "gemma4_moe"])
def test_the_printed_ir_is_as_reviewed(model, stage):
    found = stages(model, Form())[stage]
    file = GOLDEN / f"{model}.{stage}.ir"
    if os.environ.get("UPDATE_GOLDENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    wanted = file.read_text(encoding="utf-8") if file.exists() else ""
    # Line by line: pytest then shows where they part instead of two long texts.
    assert found.splitlines() == wanted.splitlines(), f"{file.name}: read the diff, then --update-golden"


def test_the_examples_of_the_ir_page_are_printed_so():
    page = (TESTS.parent / "docs" / "ir.md").read_text(encoding="utf-8")
    examples = [line for part in re.findall(r"^```\n(.*?)^```", page, re.S | re.M) for line in part.splitlines()]
    printed = {line for text in stages("qwen3_tied", Form(tokens=1)).values() for line in text.splitlines()}
    assert len(examples) > 20
    assert [line for line in examples if line.strip() not in ("", "…") and line not in printed] == []
