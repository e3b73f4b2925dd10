"""A conversation with a model: its history, the file's template, and thoughts apart from the reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from briolette.compiler.errors import BrioletteError

from .chat import render_chat
from .model import Model, Usage
from .sampling import overlap

# What models write around their thoughts, where they think before they reply.
THOUGHTS = (("<|channel>thought", "<channel|>"), ("<think>", "</think>"))

# Sampling keys that a file may carry (general.sampling.NAME, as llama.cpp writes them) and our names.
FILE_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
CHAT_SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def file_sampling(metadata: Any) -> dict[str, Any]:
    """The sampling options that a model file recommends; empty where it recommends none."""
    found = {}
    for key, ours in FILE_SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[ours] = value
    return found


@dataclass(frozen=True)
class Piece:
    """A piece of what the model writes; `thinking` where it belongs to its thoughts and not to the reply."""

    text: str
    thinking: bool = False


class Chat:
    """A conversation. `say` gives the reply to a message in pieces; the history grows by both.

    system: the system prompt, if any. think: the template's `enable_thinking`, None to leave it as the
    template has it. sampling: see `Sampling`; by default what the file recommends (`general.sampling.*`),
    else `CHAT_SAMPLING`. The model computes only the tokens that its cache does not hold yet.

    Raises BrioletteError where the model has no chat template, or one without a switch for thinking.
    """

    def __init__(self, model: Model, system: str = "", think: bool | None = None, **sampling: Any):
        self.model, self.system, self.think = model, system, think
        self.sampling = (file_sampling(model.header.metadata) or CHAT_SAMPLING) | sampling
        self.usage: Usage | None = None
        self.template = model.chat_template or ""
        if think is not None and self.template and not self.thinks:
            raise BrioletteError("the model's chat template has no switch for thinking; leave it out")
        self.reset()
        if not self.template.strip():
            render_chat(model.chat_template, [])  # raises, and says what to do

    @property
    def thinks(self) -> bool:
        """Whether the template has a switch for thinking."""
        return "enable_thinking" in self.template

    def reset(self) -> None:
        """Forgets the conversation, but not the system prompt."""
        self.messages: list[dict[str, str]] = []
        if self.system:
            self.messages.append({"role": "system", "content": self.system})

    def prompt(self) -> str:
        """The conversation as the text that the model continues."""
        tokenizer = self.model.tokenizer
        variables: dict[str, Any] = {} if self.think is None else {"enable_thinking": self.think}
        for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
            variables[name] = "" if token is None else tokenizer.token_text(token)
        return render_chat(self.template, self.messages, **variables)

    def say(self, text: str, max_tokens: int | None = None) -> Iterator[Piece]:
        """Adds a message of the user; yields the reply as it comes.

        A reply that the caller does not read to its end counts as far as it came. Raises BrioletteError,
        without a trace in the history, where the template refuses or the conversation does not fit.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self.prompt()
            ids = self.model.tokenize(prompt)
            limit = self.model.options.context if max_tokens is None else max_tokens
            special = any(mark in self.template for marks in THOUGHTS for mark in marks)
            pieces = self.model.generate(ids, max_tokens=limit, special=special, **self.sampling)
        except BrioletteError:
            self.messages.pop()
            raise
        return self._reply(pieces, Thoughts(prompt))

    def _reply(self, pieces: Iterator[str], thoughts: Thoughts) -> Iterator[Piece]:
        written = [thoughts.opened]
        try:
            for piece in pieces:
                written.append(piece)
                yield from thoughts.push(piece)
            yield from thoughts.flush()
        finally:
            # As it was written, thoughts included: it is the template's business to leave them out.
            self.messages.append({"role": "assistant", "content": "".join(written)})
            self.usage = self.model.usage


class Thoughts:
    """Tells thoughts from the reply, however the text is cut into pieces.

    `opened` is the mark with which the prompt has begun the thoughts already, or nothing.
    """

    def __init__(self, prompt: str = ""):
        self.opened = next((first for first, _ in THOUGHTS if prompt.rstrip().endswith(first)), "")
        self.end = dict(THOUGHTS).get(self.opened)  # what ends the thoughts; None outside of them
        self.held = ""
        self.fresh = True  # nothing written since the last mark: blank lines there are layout

    def push(self, text: str) -> Iterator[Piece]:
        """The pieces that are certain once `text` has come."""
        text = self.held + text
        while True:
            marks = [first for first, _ in THOUGHTS] if self.end is None else [self.end]
            found = [(place, mark) for mark in marks if (place := text.find(mark)) >= 0]
            if not found:
                break
            place, mark = min(found)
            yield from self.piece(text[:place])
            text = text[place + len(mark) :]
            self.end = dict(THOUGHTS)[mark] if self.end is None else None
            self.fresh = True
        held = max(overlap(text, mark) for mark in marks)
        self.held = text[len(text) - held :]
        yield from self.piece(text[: len(text) - held])

    def flush(self) -> Iterator[Piece]:
        """What was held back, when no more will come."""
        held, self.held = self.held, ""
        yield from self.piece(held)

    def piece(self, text: str) -> Iterator[Piece]:
        if self.fresh:
            text = text.lstrip()
        if text:
            self.fresh = False
            yield Piece(text, self.end is not None)
