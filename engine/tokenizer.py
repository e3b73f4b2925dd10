"""Text to token ids and back, as the model file's own vocabulary says.

Three kinds of vocabulary are known, by `tokenizer.ggml.model`:

* `llama`: SentencePiece BPE. Any two neighbours whose union is a token may merge, best score first.
* `gemma4`: BPE by a ranked list of merges over lines of UTF-8, with ▁ for a space and <0xXX> for odd bytes.
  The file carries scores too, which mean nothing.
* `gpt2`: the same kind of list over words, cut by regular expressions, in an alphabet of the 256 bytes.

The ids are llama.cpp's (src/llama-vocab.cpp); the tests compare them. Nothing is built before it is needed:
decoding alone reads a few bytes of the file for each token, and the first encode builds the index.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.engine.bpe import Rank, index, merge
from briolette.engine.gguf import GgufFile, StringArray, open_gguf
from briolette.engine.pretokenize import BYTE_SYMBOLS, Pretokenizer, pretokenizer
from briolette.engine.vocab import SPACE, Vocabulary

_CACHED_PIECES = 1 << 16


class Tokenizer:
    """A model file's tokenizer.

    `bos_id` and `eos_id` are None where the vocabulary has none. `add_bos` says whether a prompt begins with
    BOS.
    """

    def __init__(self, header: Header):
        self._vocab = vocab = Vocabulary(header)
        self.model, self.vocab_size = vocab.model, vocab.size
        self.bos_id, self.eos_id = vocab.bos_id, vocab.eos_id
        self._pre: Pretokenizer | None = None
        if self.model == "gpt2":
            self._pre = pretokenizer(str(vocab.key("pre", "default")), vocab.source)
        spm = self.model == "llama"
        self.space_prefix = spm and bool(vocab.key("add_space_prefix", True))
        default = spm or (self._pre is not None and self._pre.add_bos)
        # Without BOS Gemma 4 fails badly, and some of its files deny it (ggml-org/llama.cpp#21500).
        self.add_bos = self.model == "gemma4" or bool(vocab.key("add_bos_token", default))
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._texts: dict[int, bytes] = {}

    @classmethod
    def from_gguf(cls, file: str | Path | GgufFile) -> Tokenizer:
        """The tokenizer of a model.

        Raises BrioletteError where the file has none, or one of a kind that is not known.
        """
        return cls((file if isinstance(file, GgufFile) else open_gguf(file)).header)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a reply: EOS and the end of a turn, by the file's keys and by well-known names."""
        return self._vocab.stop_ids

    def token_text(self, token: int) -> str:
        """The token as it is written in the vocabulary, such as "▁the"."""
        return self._vocab.encoded(token).decode()

    def token_id(self, text: str) -> int | None:
        """The id of the token that is written `text` in the vocabulary, or None."""
        return self._vocab.lookup(text.encode("utf-8", "replace"))

    # Text to ids.

    def encode(self, text: str, add_bos: bool | None = None, special: bool = True) -> list[int]:
        """The token ids of a text.

        `add_bos`: True begins with BOS and False does not. None does as the file says, but not where the text
        itself begins with BOS, as rendered chat templates do. With `special`, a control token that is written
        in the text becomes that token; without, it is plain text. EOS is never added: this is for prompts.

        Raises BrioletteError where BOS is asked for and the vocabulary has none.
        """
        if not text.isascii():  # half a surrogate pair, as in a misread file name, has no UTF-8
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = []
        spaced = self.space_prefix  # SentencePiece sets a space before a text, and again after special tokens
        for part in self._partition(text, special):
            if isinstance(part, int):
                ids.append(part)
                spaced = self.space_prefix
                continue
            for piece in self._split(" " + part if spaced else part):
                known = self._pieces.get(piece)
                ids += self._encode_piece(piece) if known is None else known
            spaced = False
        if add_bos is None:
            add_bos = self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]
        if not add_bos:
            return ids
        if self.bos_id is None:
            raise BrioletteError(f"{self._vocab.source}: the vocabulary has no BOS token; encode without it")
        return [self.bos_id, *ids]

    @cached_property
    def _special_starts(self) -> set[str]:
        return {text[:3] for text, _, _ in self._vocab.specials}

    def _partition(self, text: str, special: bool) -> list[str | int]:
        """Cut out the special tokens: the longest first, each wherever it is in what is still text."""
        parts: list[str | int] = [text] if text else []
        # Gemma 3 has 6,400 special tokens, most of which begin alike: look for the beginnings first.
        starts = {start for start in self._special_starts if start in text}
        for name, token, always in self._vocab.specials:
            if name[:3] not in starts or not (special or always) or name not in text:
                continue
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int):
                    cut.append(part)
                    continue
                for number, rest in enumerate(part.split(name)):
                    cut += [token] * (number > 0) + [rest] * bool(rest)
            parts = cut
        return parts

    @cached_property
    def _boundary(self) -> re.Pattern[str]:
        """Where no merge reaches across, so that either side can be encoded, and remembered, by itself.

        That is before a ▁, after any character that no merge joins with a ▁ to its right. In Gemma's
        vocabularies those are all but ▁ and ">".
        """
        space = re.escape(SPACE.encode())
        if self.model == "llama":  # a ▁ within a token; before the first one are the zeros of a length
            pattern = space + b"(?<!" + space * 2 + rb")(?<!\0\0\0" + space + b")"
            strings = self._vocab.strings("tokens")
        else:  # a merge whose right side begins with ▁ and whose left side does not end with one
            pattern = b" " + space + b"(?<!" + space + b" " + space + b")"
            strings = self._vocab.strings("merges")
        raw: bytes | memoryview
        if isinstance(strings, StringArray):
            raw = strings.raw()
        else:
            raw = b"".join(struct.pack("<Q", len(text)) + text for text in map(str.encode, strings))
        before = {SPACE}
        for found in re.finditer(pattern, raw):
            before.add(bytes(raw[max(0, found.start() - 4) : found.start()]).decode(errors="ignore")[-1:])
        return re.compile(f"(?<=[^{''.join(map(re.escape, before))}])(?={SPACE})")

    @cached_property
    def _words(self) -> Callable[[str], Iterable[str]]:
        assert self._pre is not None
        return self._pre.splitter()

    def _split(self, text: str) -> Iterable[str]:
        """Cut a text into pieces that are encoded by themselves."""
        if self.model == "gpt2":
            return self._words(text)
        text = text.replace(" ", SPACE)
        if self.model == "llama":
            return self._boundary.split(text)
        return (piece for line in re.findall(r"\n+|[^\n]+", text) for piece in self._boundary.split(line))

    @cached_property
    def _rank(self) -> Rank:
        lookup = self._vocab.lookup
        if self.model == "llama":
            scores = self._vocab.numbers("scores")

            def by_score(left: bytes, right: bytes) -> float | None:
                token = lookup(left + right)
                return None if token is None else -float(scores[token])

            return by_score
        ranks = index(self._vocab.strings("merges"), first=True)
        return lambda left, right: ranks(left + b" " + right)

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        lookup = self._vocab.lookup
        if self.model == "gpt2":
            symbols = [BYTE_SYMBOLS[byte] for byte in piece.encode()]
        else:
            symbols = [character.encode() for character in piece]
        whole = None
        # A run of newlines that is a token is taken whole, against the merges (ggml-org/llama.cpp#21343).
        if (self._pre and self._pre.ignore_merges) or (self.model == "gemma4" and piece[0] == "\n"):
            whole = lookup(b"".join(symbols))
        ids: list[int] = [] if whole is None else [whole]
        for symbol in merge(symbols, self._rank) if whole is None else ():
            token = lookup(symbol)
            ids += self._spell(symbol) if token is None else [token]
        if len(self._pieces) >= _CACHED_PIECES:
            self._pieces.clear()
        self._pieces[piece] = result = tuple(ids)
        return result

    def _spell(self, symbol: bytes) -> list[int]:
        """A symbol that is no token, as tokens for its bytes."""
        if self.model == "gpt2":
            names = [character.encode() for character in symbol.decode()]
        else:
            names = [b"<0x%02X>" % byte for byte in symbol]
        ids = [token for name in names if (token := self._vocab.lookup(name)) is not None]
        # Some vocabularies of bytes lack those that text hardly has: llama.cpp leaves them out. SentencePiece
        # has a token for what it does not know.
        if self.model == "llama" and len(ids) < len(names) and self._vocab.unknown_id is not None:
            return [self._vocab.unknown_id]
        return ids

    # Ids to text.

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes of text that one token stands for, which may be a part of a character.

        Control tokens stand for nothing or, with `special`, for their names.
        """
        key = 2 * token + special
        if (known := self._texts.get(key)) is None:
            self._texts[key] = known = self._vocab.decoded(token, special)
        return known

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of a whole sequence of ids; `special` shows the control tokens, which are else left out.

        Bytes that are not UTF-8 become U+FFFD. The space that `encode` may have set before the text is taken
        away again. Raises BrioletteError at an id that is not in the vocabulary.
        """
        stream = self.stream(special, start=True)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, special: bool = False, start: bool = False) -> Detokenizer:
        """A decoder that takes one id at a time.

        `start` says that the ids begin a text rather than continue one. It matters only in vocabularies that
        set a space before a text.
        """
        return Detokenizer(self, special, start)


class Detokenizer:
    """Decodes ids as they come. A character that several tokens spell comes whole, with the last of them."""

    def __init__(self, tokenizer: Tokenizer, special: bool, start: bool):
        self._tokenizer, self._special = tokenizer, special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = start and tokenizer.space_prefix

    def push(self, token: int) -> str:
        """The text that is certain once `token` has come; often none."""
        raw = self._tokenizer.token_bytes(token, self._special)
        if self._drop_space and token != self._tokenizer.bos_id:
            self._drop_space = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)
