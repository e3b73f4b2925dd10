"""Whatever a spec or a file says, a person gets an error of ours, never a Python traceback."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from briolette.compiler.elaborate import elaborate
from briolette.compiler.header import Header, TensorInfo
from briolette.compiler.unroll import unroll
from briolette.spec.errors import BrioletteError
from briolette.spec.format import format
from briolette.spec.syntax import parse, shipped

MODELS = [
    "gemma4_e2b",
    "gemma4_moe",
    "gemma4_qkv",
    "gemma3_array",
    "gemma2_caps",
    "llama_qkv",
    "qwen3_untied",
]
HEADERS = {name: tiny.oracle_header(name) for name in MODELS}
TEXTS = {name: shipped()[header.architecture].read_text() for name, header in HEADERS.items()}
TREES = {name: parse(text) for name, text in TEXTS.items()}
TOKEN = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|#[^\n]*|\w+|\|>|\*\*|->|<-|//|[<>=!]=|\S|\n")
WORDS = """
none true 0 1 -1 2.5 1e30 'x' "block_count" x i hd L D T V W kind kind[i] cache[i] q k v ( ) [ ] { }
: , ; = == + - * / // % ** < not and or if else when for return ignore |> require <- -> rms()
softmax() top(x,2) sum(x) embed attn_q token_embd has(output) last(j<L:true) x[0] x[:,0] x[1:2] [:]
"""
SPARE = [*re.findall(r"\S+", WORDS), "\n"]


def tried(text: str, header: Header) -> None:
    """Parses, formats and elaborates; BrioletteError is the only way out."""
    with suppress(BrioletteError):
        tree = parse(text, "fuzz.arch")
        assert parse(format(tree)) == tree
        unroll(elaborate(tree, header))


@given(
    model=st.sampled_from(MODELS),
    edits=st.lists(
        st.tuples(st.sampled_from(["drop", "twice", "swap", "put"]), st.integers(0, 5000), st.integers(0, 5000)),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=50, deadline=None)
def test_broken_specs_end_in_our_errors(model: str, edits: list[tuple[str, int, int]]) -> None:
    pieces = re.findall(r"[ \t]+|" + TOKEN.pattern, TEXTS[model])
    for kind, place, other in edits:
        at, choice = place % len(pieces), other % len(pieces)
        match kind:
            case "drop":
                pieces[at] = ""
            case "twice":
                pieces[at] = f"{pieces[at]} {pieces[at]}"
            case "swap":
                pieces[at], pieces[choice] = pieces[choice], pieces[at]
            case "put":
                pieces[at] = SPARE[other % len(SPARE)]
    tried("".join(pieces), HEADERS[model])


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**6, -(10**30), 0.5, float("nan"), float("inf"), "yarn", "", [], [1], [True, False], ["x"] * 9]),
    st.lists(st.integers(0, 9), max_size=9),
)


@given(model=st.sampled_from(MODELS), data=st.data())
@settings(max_examples=40, deadline=None)
def test_odd_files_end_in_our_errors(model: str, data: st.DataObject) -> None:
    header = HEADERS[model]
    metadata: dict[str, Any] = dict(header.metadata)
    ours = sorted(key for key in metadata if key.startswith(header.architecture + "."))
    for key in data.draw(st.lists(st.sampled_from(ours), max_size=3)):
        metadata[key] = data.draw(ODD)
        if metadata[key] is None:
            del metadata[key]
    tensors = dict(header.tensors)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)):
        shape = data.draw(st.none() | st.lists(st.integers(0, 40), max_size=4).map(tuple))
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = TensorInfo(name, shape, "f32")
    with suppress(BrioletteError):
        unroll(elaborate(TREES[model], Header(metadata, tensors, "odd.gguf")))


@given(st.text(max_size=60) | st.lists(st.sampled_from(SPARE), max_size=12).map(" ".join))
@settings(max_examples=40, deadline=None)
def test_any_text_parses_or_is_a_spec_error(text: str) -> None:
    tried(text, HEADERS["qwen3_untied"])
    tried(f"arch qwen3\n{text}\n", HEADERS["qwen3_untied"])
    tried(f"arch qwen3\nmodel(x) -> [T] {{\n  {text}\n}}\n", HEADERS["qwen3_untied"])
