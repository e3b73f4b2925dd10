"""Conversations: what is thought and what is said, what a file recommends, and the history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import briolette
from briolette.compiler.errors import BrioletteError
from briolette.engine.session import CHAT_SAMPLING, Chat, Piece, Thoughts, file_sampling

ORACLE = Path(__file__).resolve().parents[1] / "oracle" / "models" / "gemma4_e2b.gguf"
THINKING = "{{ enable_thinking }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def parted(pieces: Sequence[str], prompt: str = "") -> tuple[str, str]:
    """(thoughts, reply) of a text that comes in pieces."""
    thoughts = Thoughts(prompt)
    found: list[Piece] = [piece for text in pieces for piece in thoughts.push(text)]
    found += thoughts.flush()
    return tuple("".join(p.text for p in found if p.thinking is wanted) for wanted in (True, False))


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("Just a reply.", "", ("", "Just a reply.")),
        ("<think>\nHm, 2 < 3.\n</think>\n\nYes <b>.", "", ("Hm, 2 < 3.\n", "Yes <b>.")),
        ("<|channel>thought\nHm.<channel|>Yes.", "", ("Hm.", "Yes.")),
        ("Hm.</think>Yes.", "assistant\n<think>\n", ("Hm.", "Yes.")),
        ("<think>never ends", "", ("never ends", "")),
        ("<thin ice", "", ("", "<thin ice")),
    ],
)
def test_thoughts_are_told_from_the_reply_however_the_text_is_cut(text, prompt, expected):
    assert parted([text], prompt) == expected
    assert parted(list(text), prompt) == expected
    for cut in range(len(text)):
        assert parted([text[:cut], text[cut:]], prompt) == expected


def test_a_file_recommends_how_to_sample():
    keys = {"general.sampling.temp": 1.0, "general.sampling.top_k": 64, "general.sampling.xtc_threshold": 0.1}
    assert file_sampling(keys) == {"temperature": 1.0, "top_k": 64}
    assert file_sampling({"general.name": "x"}) == {}


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(briolette.Model, "chat_template", THINKING)
    return briolette.load(ORACLE, context=64, threads=1)


def test_chat_keeps_a_history_and_the_cache(model):
    chat = Chat(model, "S", think=True, temperature=0.0)
    assert chat.sampling == CHAT_SAMPLING | {"temperature": 0.0}
    list(chat.say("a", max_tokens=3))
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.usage is not None
    assert (chat.usage.reused, chat.usage.generated, chat.usage.finish) == (0, 3, "length")
    before = chat.usage.prompt
    list(chat.say("b", max_tokens=1))
    assert chat.usage.reused >= before - 1  # what the prompt says again is not computed again
    chat.reset()
    assert [m["role"] for m in chat.messages] == ["system"]


def test_a_reply_that_is_cut_short_counts_as_far_as_it_came(model):
    chat = Chat(model, think=False, temperature=0.0)
    pieces = chat.say("a", max_tokens=8)
    next(pieces)
    pieces.close()
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]


def test_a_message_that_does_not_fit_leaves_no_trace(model):
    chat = Chat(model, temperature=0.0)
    with pytest.raises(BrioletteError, match="do not fit into a context of 64"):
        chat.say("abc " * 100)
    assert chat.messages == []


def test_a_model_that_cannot_chat_or_think_says_so(model, monkeypatch):
    monkeypatch.setattr(briolette.Model, "chat_template", "{{ messages[0].content }}")
    with pytest.raises(BrioletteError, match="no switch for thinking"):
        Chat(model, think=True)
    monkeypatch.setattr(briolette.Model, "chat_template", None)
    with pytest.raises(BrioletteError, match="briolette run"):
        Chat(model)
