"""A model file's vocabulary: what each token is, which ones are special and which end a reply."""

from __future__ import annotations

import re
from functools import cached_property
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.engine.bpe import Lookup, index
from briolette.engine.gguf import NumberArray, StringArray
from briolette.engine.pretokenize import SYMBOL_BYTES

MODELS = ("gemma4", "llama", "gpt2")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type
SPACE = "▁"
_KEY = "tokenizer.ggml."
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")

# Tokens that end a reply even where no key of the file says so; llama.cpp knows them by their text as well.
# Those of the last two lines end a file in models that complete code.
_STOP_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend▁of▁sentence\uff5c>", "[e~[",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
)  # fmt: skip


class Vocabulary:
    """The tokens of a model. `bos_id`, `eos_id` and `unknown_id` are None where it has none.

    Raises BrioletteError where the file holds no vocabulary, or one of a kind that is not known.
    """

    def __init__(self, header: Header):
        self.metadata, self.source = header.metadata, header.source
        model = self.metadata.get(_KEY + "model")
        if model is None:
            self.fail(f"the file holds no tokenizer: there is no {_KEY}model", "give a complete model file")
        if model not in MODELS:
            self.fail(
                f"{_KEY}model is {model!r}, a kind of tokenizer that briolette does not know",
                f"it knows {', '.join(MODELS)}",
            )
        self.model = str(model)
        self._tokens = self.strings("tokens")
        self.size = len(self._tokens)
        self._types = None if _KEY + "token_type" not in self.metadata else self.numbers("token_type")
        # SentencePiece's own ids, which files of its kind may leave out.
        spm = self.model == "llama"
        self.bos_id = self.id_of_key("bos_token_id", 1 if spm else None)
        self.eos_id = self.id_of_key("eos_token_id", 2 if spm else None)
        self.unknown_id = self.id_of_key("unknown_token_id", 0 if spm else None)

    def fail(self, what: str, do: str = "convert the model again") -> NoReturn:
        raise BrioletteError(f"{self.source}: {what}; {do}")

    def key(self, name: str, default: object = None) -> object:
        return self.metadata.get(_KEY + name, default)

    def strings(self, name: str) -> StringArray | list[str]:
        value = self.key(name)
        if isinstance(value, StringArray):
            return value
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            self.fail(f"metadata key {_KEY}{name} is {'missing' if value is None else 'no list of strings'}")
        return value

    def numbers(self, name: str) -> NDArray[np.generic]:
        """A list with a number for each token, shape (vocab_size,)."""
        value = self.key(name)
        array = value.array if isinstance(value, NumberArray) else np.array(value)
        if array.dtype.kind not in "iuf" or array.shape != (self.size,):
            state = "missing" if value is None else f"no list of numbers, one for each of {self.size} tokens"
            self.fail(f"metadata key {_KEY}{name} is {state}")
        return array

    def id_of_key(self, name: str, default: int | None = None) -> int | None:
        token = self.key(name, default)
        if token is None or (isinstance(token, int) and 0 <= token < self.size):
            return token
        if self.key(name) is not None:
            self.fail(f"metadata key {_KEY}{name} is {token!r}, where the vocabulary has {self.size} tokens")
        return None

    def encoded(self, token: int) -> bytes:
        """The token as it is written in the vocabulary, in UTF-8."""
        if not 0 <= token < self.size:
            self.fail(f"there is no token {token}", f"the vocabulary ends at {self.size - 1}")
        tokens = self._tokens
        return tokens.encoded(token) if isinstance(tokens, StringArray) else tokens[token].encode()

    @cached_property
    def lookup(self) -> Lookup:
        return index(self._tokens)

    def kind(self, token: int) -> int:
        return NORMAL if self._types is None else int(self._types[token])

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a reply: those that the file's keys name, and known end-of-turn tokens."""
        keys = ("eos_token_id", "eot_token_id", "eom_token_id")
        stops = [self.eos_id, *map(self.id_of_key, keys)]
        listed = self.key("eos_token_ids", [])
        stops += [token for token in listed if isinstance(token, int)] if isinstance(listed, list) else []
        named = {text: token for text in _STOP_TEXTS if (token := self.lookup(text.encode())) is not None}
        # In these vocabularies <|end|> closes only a part of the reply (gpt-oss, Solar Open).
        if {"<|return|>", "<|call|>"} <= named.keys() or {"<|flush|>", "<|calls|>"} <= named.keys():
            named.pop("<|end|>", None)
        # In Gemma's vocabularies </s> is HTML: it counts only where it is a control token.
        if (end := self.lookup(b"</s>")) is not None and self.kind(end) == CONTROL:
            named["</s>"] = end
        return frozenset(token for token in (*stops, *named.values()) if token is not None)

    @cached_property
    def specials(self) -> list[tuple[str, int, bool]]:
        """(text, id, whether plain text has it too) of the tokens found before any merging, longest first."""
        kinds = np.full(self.size, NORMAL) if self._types is None else self._types
        tokens = np.flatnonzero(np.isin(kinds, [UNKNOWN, CONTROL, USER_DEFINED])).tolist()
        # A few conversions forgot to mark the end of a turn, which must never be spelt in letters.
        unmarked = [token for token in self.stop_ids if self.encoded(token).decode() in _STOP_TEXTS]
        texts = [(self.encoded(token), token) for token in sorted({*tokens, *unmarked})]
        texts.sort(key=lambda text: -len(text[0]))
        plain = {token for _, token in texts if self.kind(token) == USER_DEFINED} - self.stop_ids
        return [(text.decode(), token, token in plain) for text, token in texts if text]

    def decoded(self, token: int, special: bool) -> bytes:
        """The bytes of text that a token stands for; with `special` control tokens stand for their names."""
        text, kind = self.encoded(token), self.kind(token)
        if kind in (CONTROL, UNKNOWN) or text.decode() in _STOP_TEXTS:
            return text if special else b""
        if kind == USER_DEFINED:
            return text
        if kind == BYTE:
            return bytes.fromhex(text[3:5].decode()) if _BYTE_TOKEN.fullmatch(text) else text
        if kind != NORMAL:
            return b""
        if self.model != "gpt2":
            return text.replace(SPACE.encode(), b" ")
        return b"".join(bytes([SYMBOL_BYTES[c]]) if c in SYMBOL_BYTES else c.encode() for c in text.decode())
