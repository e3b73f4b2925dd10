"""The printed IR is the IR: reading it back gives the same nodes, at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from briolette.compiler.errors import BrioletteError
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.text import parse_module, print_module
from briolette.engine.gguf import open_gguf
from briolette.engine.model import architecture

MODELS = sorted((Path(__file__).resolve().parents[1] / "oracle" / "models").glob("*.gguf"))


def without_origins(text: str) -> list[str]:
    return [line.split("   # ")[0] for line in text.splitlines()]


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_round_trip_at_every_stage(path):
    header = open_gguf(path).header
    trace = Trace()
    module = front(architecture(None, header), header, trace)
    modules = dict(trace.modules)
    for form in (Form(tokens=1), Form(), Form(logits="all", cache="f16")):
        trace = Trace()
        optimise(module, form, trace)
        modules |= {f"{stage} {form}": m for stage, m in trace.modules.items()}
    for stage, module in modules.items():
        text = print_module(module)
        again = parse_module(text)
        assert again == module, stage
        assert all(a is b for a, b in zip(again.roots, module.roots, strict=True)), stage
        assert without_origins(print_module(again)) == without_origins(text), stage


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("module m unrolled\nmain {\n  %x = nope(1.0) : [] f32\n  return %x\n}", "unknown op `nope`"),
        ("module m unrolled\nmain {\n  return %x\n}", "%x is not defined"),
        ("module m unrolled\nmain {\n  %x = add(1.0, 2.0) : [3] f32\n  return %x\n}", "the text says"),
        ("hello", "unexpected `hello`"),
    ],
)
def test_bad_text_names_its_line(text, words):
    with pytest.raises(BrioletteError, match="line") as caught:
        parse_module(text)
    assert words in str(caught.value)
