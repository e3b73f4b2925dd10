"""Text to token ids and back, as the model file's own vocabulary says.

Three kinds of vocabulary are known, by `tokenizer.ggml.model`:

* `llama`: SentencePiece BPE. Any two neighbours whose union is a token may merge, best score first.
* `gemma4`: BPE by a ranked list of merges over UTF-8 text in lines, with ▁ for a space and <0xXX> for odd bytes.
  The file carries scores too, which mean nothing.
* `gpt2`: the same list of merges over words, cut by regular expressions, in the alphabet of the 256 bytes.

Ids are the same as llama.cpp's (src/llama-vocab.cpp), which the tests compare. Nothing is built before it is
needed: decoding alone reads a few bytes of the file for each token, and the first encode builds the index.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.engine.bpe import Lookup, Rank, index, merge
from briolette.engine.gguf import GgufFile, NumberArray, StringArray, open_gguf
from briolette.engine.pretokenize import BYTE_SYMBOLS, SYMBOL_BYTES, Pretokenizer, pretokenizer
from numpy.typing import NDArray

MODELS = ("gemma4", "llama", "gpt2")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type
SPACE = "▁"
_KEY = "tokenizer.ggml."
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_CACHED_PIECES = 1 << 16

# Tokens that end a reply even where no key of the file says so; llama.cpp knows them by their text as well.
# The last two lines end a file in code-completion models.
_STOP_TEXTS = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
]


class Tokenizer:
    """A model file's tokenizer.

    `bos_id` and `eos_id` are None where the vocabulary has none, `add_bos` says whether a prompt begins with BOS.
    """

    def __init__(self, header: Header):
        self._metadata, self._source = header.metadata, header.source
        self.model = self._metadata.get(_KEY + "model")
        if self.model is None:
            raise BrioletteError(
                f"{self._source}: the file holds no tokenizer (there is no {_KEY}model); give a complete model file"
            )
        if self.model not in MODELS:
            raise BrioletteError(
                f"{self._source}: {_KEY}model is {self.model!r}, a kind of tokenizer that briolette does not "
                f"know; it knows {', '.join(MODELS)}"
            )
        self._tokens = self._strings("tokens")
        self.vocab_size = len(self._tokens)
        self._types = self._numbers("token_type", required=False)
        self._pre: Pretokenizer | None = None
        if self.model == "gpt2":
            self._pre = pretokenizer(str(self._metadata.get(_KEY + "pre", "default")), self._source)
        # SentencePiece's own defaults, which files of this kind may leave out.
        spm = self.model == "llama"
        self.bos_id = self._id("bos_token_id", 1 if spm else None)
        self.eos_id = self._id("eos_token_id", 2 if spm else None)
        self._space_prefix = spm and bool(self._metadata.get(_KEY + "add_space_prefix", True))
        default = spm or (self._pre is not None and self._pre.add_bos)
        # Gemma 4 fails badly without BOS, and some of its files deny it (ggml-org/llama.cpp#21500).
        self.add_bos = self.model == "gemma4" or bool(self._metadata.get(_KEY + "add_bos_token", default))
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_gguf(cls, file: str | Path | GgufFile) -> Tokenizer:
        """The tokenizer of a model. Raises BrioletteError where the file has none, or one that is not known."""
        return cls((file if isinstance(file, GgufFile) else open_gguf(file)).header)

    # Reading the metadata.

    def _strings(self, key: str) -> StringArray | list[str]:
        value = self._metadata.get(_KEY + key)
        if isinstance(value, StringArray) or (
            value and isinstance(value, list) and isinstance(value[0], str)
        ):
            return value
        state = "missing" if value is None else "not a list of strings"
        raise BrioletteError(f"{self._source}: metadata key {_KEY}{key} is {state}; convert the model again")

    def _numbers(self, key: str, required: bool = True) -> NDArray[np.generic] | None:
        value = self._metadata.get(_KEY + key)
        if value is None and not required:
            return None
        array = value.array if isinstance(value, NumberArray) else np.array(value)
        if array.dtype.kind not in "iuf" or array.shape != (self.vocab_size,):
            state = (
                "missing" if value is None else f"not a list of {self.vocab_size} numbers, one for each token"
            )
            raise BrioletteError(
                f"{self._source}: metadata key {_KEY}{key} is {state}; convert the model again"
            )
        return array

    def _id(self, key: str, default: int | None = None) -> int | None:
        value = self._metadata.get(_KEY + key, default)
        if value is None or (isinstance(value, int) and 0 <= value < self.vocab_size):
            return value
        if key not in self._metadata:
            return None
        raise BrioletteError(
            f"{self._source}: metadata key {_KEY}{key} is {value!r}, no token of the {self.vocab_size} in the "
            f"vocabulary; convert the model again"
        )

    # Single tokens.

    def _encoded(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise BrioletteError(
                f"{self._source}: token id {token} is not in the vocabulary, which ends at {self.vocab_size - 1}"
            )
        tokens = self._tokens
        return tokens.encoded(token) if isinstance(tokens, StringArray) else tokens[token].encode()

    def token_text(self, token: int) -> str:
        """The token as it is written in the vocabulary, such as "▁the"."""
        return self._encoded(token).decode()

    def token_id(self, text: str) -> int | None:
        """The id of the token that is written `text` in the vocabulary, or None."""
        return self._lookup(text.encode("utf-8", "replace"))

    @cached_property
    def _lookup(self) -> Lookup:
        return index(self._tokens)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a reply: those that keys of the file name, and known end-of-turn tokens of the vocabulary."""
        keys = ("eos_token_id", "eot_token_id", "eom_token_id")
        stops = {token for key in keys if (token := self._id(key)) is not None} | {self.eos_id}
        more = self._metadata.get(_KEY + "eos_token_ids", [])
        stops.update(
            token for token in (more if isinstance(more, list) else [more]) if isinstance(token, int)
        )
        named = {text: token for text in _STOP_TEXTS if (token := self.token_id(text)) is not None}
        # In these vocabularies <|end|> closes a part of the reply (gpt-oss, Solar Open).
        if {"<|return|>", "<|call|>"} <= named.keys() or {"<|flush|>", "<|calls|>"} <= named.keys():
            named.pop("<|end|>", None)
        # In Gemma, </s> is HTML: it counts only where it is a control token.
        end = self.token_id("</s>")
        if end is not None and self._type(end) == CONTROL and "<|tool_response>" not in named:
            named["</s>"] = end
        return frozenset(token for token in (*stops, *named.values()) if token is not None)

    def _type(self, token: int) -> int:
        return NORMAL if self._types is None else int(self._types[token])

    @cached_property
    def _specials(self) -> list[tuple[str, int, bool]]:
        """(text, id, whether it is one even in plain text), longest first: the tokens found before any merging."""
        kinds = np.zeros(self.vocab_size, np.int64) if self._types is None else self._types[: self.vocab_size]
        found = set(np.flatnonzero(np.isin(kinds, [UNKNOWN, CONTROL, USER_DEFINED])).tolist()) | self.stop_ids
        texts = [(self._encoded(token), token) for token in sorted(found)]
        texts.sort(key=lambda text: -len(text[0]))
        return [(text.decode(), token, self._type(token) == USER_DEFINED) for text, token in texts if text]

    @cached_property
    def _special_starts(self) -> set[str]:
        return {text[:3] for text, _, _ in self._specials}

    # Text to ids.

    def encode(self, text: str, add_bos: bool | None = None, special: bool = True) -> list[int]:
        """The token ids of a text.

        `add_bos`: True begins with BOS, False does not, and None does as the file says, but never twice where the
        text itself begins with BOS, as rendered chat templates do. With `special`, a control token written in the
        text becomes that token; without, it is plain text. EOS is never added: this is for prompts.
        """
        if not text.isascii():  # half a surrogate pair, such as from a misread file name, has no UTF-8
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = []
        first = True  # also after a special token: there SentencePiece sets a space before the text
        for part in self._partition(text, special):
            if isinstance(part, int):
                ids.append(part)
                first = True
                continue
            for piece in self._split(" " + part if first and self._space_prefix else part):
                known = self._pieces.get(piece)
                ids += known if known is not None else self._encode_piece(piece)
            first = False
        if add_bos is None:
            add_bos = self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]
        if not add_bos:
            return ids
        if self.bos_id is None:
            raise BrioletteError(
                f"{self._source}: the vocabulary has no BOS token to add; encode with add_bos=False"
            )
        return [self.bos_id, *ids]

    def _partition(self, text: str, special: bool) -> list[str | int]:
        """Cut out the special tokens: the longest first, each wherever it is in what is still text."""
        parts: list[str | int] = [text] if text else []
        # Gemma 3 has 6,400 of them, all but a few dozen with the same beginning: look for beginnings first.
        starts = {start for start in self._special_starts if start in text}
        for token_text, token, always in self._specials:
            if token_text[:3] not in starts or not (special or always) or token_text not in text:
                continue
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int):
                    cut.append(part)
                    continue
                for number, rest in enumerate(part.split(token_text)):
                    cut += [token] * (number > 0) + [rest] * bool(rest)
            parts = cut
        return parts

    @cached_property
    def _boundary(self) -> re.Pattern[str]:
        """Where no merge can reach across, so that what is on either side can be encoded, and remembered, alone.

        That is before a ▁ after any character that no merge joins with a ▁ to its right: in Gemma, after any but
        ▁ and ">".
        """
        space = re.escape(SPACE.encode())
        if self.model == "llama":
            pattern = space + b"(?<!" + space * 2 + rb")(?<!\0\0\0" + space + b")"  # not first in a token
            strings = self._tokens
        else:
            pattern = b" " + space + b"(?<!" + space + b" " + space + b")"
            strings = self._strings("merges")
        raw: bytes | memoryview
        if isinstance(strings, StringArray):
            raw = strings.raw()
        else:
            raw = b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in strings)
        before = {SPACE}
        for found in re.finditer(pattern, raw):
            before.add(bytes(raw[max(0, found.start() - 4) : found.start()]).decode(errors="ignore")[-1:])
        return re.compile(f"(?<=[^{''.join(map(re.escape, before))}])(?={SPACE})")

    @cached_property
    def _split_words(self) -> Callable[[str], Iterable[str]]:
        assert self._pre is not None
        return self._pre.splitter()

    def _split(self, text: str) -> Iterable[str]:
        if self.model == "gpt2":
            return self._split_words(text)
        text = text.replace(" ", SPACE)
        if self.model == "llama":
            return self._boundary.split(text)
        lines = re.findall(r"\n+|[^\n]+", text)
        return (piece for line in lines for piece in self._boundary.split(line))

    @cached_property
    def _rank(self) -> Rank:
        lookup = self._lookup
        if self.model == "llama":
            scores = self._numbers("scores")
            assert scores is not None

            def by_score(left: bytes, right: bytes) -> float | None:
                token = lookup(left + right)
                return None if token is None else -float(scores[token])

            return by_score
        ranks = index(self._strings("merges"), first=True)
        return lambda left, right: ranks(left + b" " + right)

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        symbols = (
            [BYTE_SYMBOLS[b] for b in piece.encode()] if self.model == "gpt2" else [c.encode() for c in piece]
        )
        whole = None
        # A run of newlines that is a token is one, whatever the merges say (ggml-org/llama.cpp#21343).
        if (self._pre and self._pre.ignore_merges) or (self.model == "gemma4" and piece[0] == "\n"):
            whole = self._lookup(b"".join(symbols))
        ids: list[int] = [] if whole is None else [whole]
        for symbol in merge(symbols, self._rank) if whole is None else ():
            token = self._lookup(symbol)
            ids += self._spell(symbol) if token is None else [token]
        if len(self._pieces) >= _CACHED_PIECES:
            self._pieces.clear()
        self._pieces[piece] = result = tuple(ids)
        return result

    def _spell(self, symbol: bytes) -> Iterable[int]:
        """A symbol that is no token, byte by byte."""
        if self.model == "gpt2":
            spelt = [self._lookup(character.encode()) for character in symbol.decode()]
        else:
            spelt = [self._lookup(b"<0x%02X>" % byte) for byte in symbol]
        if None not in spelt:
            return [token for token in spelt if token is not None]
        unknown = self._id("unknown_token_id", 0 if self.model == "llama" else None)
        return [] if unknown is None else [unknown]

    # Ids to text.

    def _token_bytes(self, token: int, special: bool) -> bytes:
        key = ~token if special else token
        if (known := self._bytes.get(key)) is None:
            self._bytes[key] = known = self._decode_token(token, special)
        return known

    def _decode_token(self, token: int, special: bool) -> bytes:
        text, kind = self._encoded(token), self._type(token)
        if kind in (CONTROL, UNKNOWN):
            return text if special else b""
        if kind == USER_DEFINED:
            return text
        if kind == BYTE:
            return bytes.fromhex(text[3:5].decode()) if _BYTE_TOKEN.fullmatch(text) else text
        if kind != NORMAL:
            return b""
        if self.model != "gpt2":
            return text.replace(SPACE.encode(), b" ")
        spelt = (bytes([SYMBOL_BYTES[c]]) if c in SYMBOL_BYTES else c.encode() for c in text.decode())
        return b"".join(spelt)

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of a whole sequence of ids; `special` shows control tokens, which are otherwise left out.

        Bytes that are not UTF-8 become U+FFFD. Where encode set a space before the text, it is taken away again.
        """
        stream = self.stream(special, start=True)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, special: bool = False, start: bool = False) -> Detokenizer:
        """A decoder that takes one id at a time. `start` says that the ids begin a text, rather than go on with one.

        Only in vocabularies that set a space before a text does `start` make a difference.
        """
        return Detokenizer(self, special, start)


class Detokenizer:
    """Decodes ids as they come. Characters that several tokens spell come out whole, with the last of those."""

    def __init__(self, tokenizer: Tokenizer, special: bool, start: bool):
        self._tokenizer, self._special = tokenizer, special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = start and tokenizer._space_prefix

    def push(self, token: int) -> str:
        """The text that is sure once `token` has come, perhaps none."""
        raw = self._tokenizer._token_bytes(token, self._special)
        if self._drop_space and token != self._tokenizer.bos_id:
            self._drop_space = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)
