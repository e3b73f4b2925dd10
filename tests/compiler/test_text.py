"""The printed IR is the IR: reading it back gives the same nodes, at every stage."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briolette.compiler.errors import BrioletteError
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.text import parse_module, print_module
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture

MODELS = sorted((Path(__file__).resolve().parents[1] / "oracle" / "models").glob("*.gguf"))


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """A small model as text, in both forms and fused."""
    header = open_gguf(next(p for p in MODELS if p.stem == "qwen3_tied")).header
    trace = Trace()
    module = front(architecture(None, header), header, trace)
    return [print_module(m) for m in (*trace.modules.values(), optimise(module, Form(tokens=1)))]


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
        ("hello", "line 1: unexpected `hello`"),
        ("module m", "line 1: expected `module NAME FORM`"),
        ("module m unrolled\n", "ends without its `main`"),
        ("", "ends without its `module`"),
        ("main {\n  return 1.0\n}", "ends without its `module`"),
        ("module m unrolled\ntensor t", "line 2: expected `tensor NAME"),
        ("module m unrolled\nmain {\n  %x = exp(1.0) : [] f32", "line 3: the text ends inside of a block"),
        ("module m unrolled\nmain {\n  return 1.0\nmain {", "line 4: expected the block's `}`"),
        ("module m unrolled\nmain {\n  return 1.0 2.0\n}", "line 3: unexpected `2.0`"),
        ("module m unrolled\nmain {\n  %x = exp(1.0) : [] f32 what\n  return %x\n}", "line 3: unexpected `what`"),
        ("module m unrolled\nmain {\n  %x = exp(1.0) : []\n  return %x\n}", "line 3: expected affine"),
        ("module m unrolled\nmain {\n  %x = exp(1.0) {up = 1} : [] f32\n  return %x\n}", "no attribute up"),
        ("module m unrolled\nmain {\n  %x = call() {block = &b} : [] f32\n  return %x\n}", "&b is not defined"),
        (
            "module m unrolled\nmain {\n  %x = exp(1.0) : [] f32\n  %x = exp(2.0) : [] f32\n  return %x\n}",
            "line 4: %x is defined twice",
        ),
        ("module m blocks\nblock b() {\n  return 1.0, 2.0\n}\nmain {\n  return 1.0\n}", "a block returns one"),
    ],
)
def test_bad_text_names_its_line(text, words):
    with pytest.raises(BrioletteError, match="line") as caught:
        parse_module(text)
    assert words in str(caught.value)


def damaged(text: str, random: Random) -> str:
    """The text cut off, without a line, without some characters, or with one changed."""
    lines, at = text.splitlines(), random.randrange(len(text))
    match random.randrange(4):
        case 0:
            return text[:at]
        case 1:
            del lines[random.randrange(len(lines))]
            return "\n".join(lines)
        case 2:
            return text[:at] + text[at + random.randrange(1, 4) :]
        case _:
            return text[:at] + random.choice('()[]{}%@&"<>,=:1xT-. ') + text[at + 1 :]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_text_is_read_or_refused_with_its_line(printed, seed):
    random = Random(seed)
    module, message = None, ""
    try:
        module = parse_module(damaged(random.choice(printed), random))
    except BrioletteError as error:
        message = str(error)
    if module is None:
        assert re.match(r"IR text, line \d+: \S", message)
    else:
        assert parse_module(print_module(module)) == module
