"""How byte-level BPE vocabularies ("gpt2") cut a text into words before merging, and how they spell bytes.

`tokenizer.ggml.pre` names a list of regular expressions. Each cuts what the ones before it left, and what
lies between two matches is a word as well. The expressions are the models' own, of their tokenizer.json; HF
`tokenizers` runs them, because Python's `re` has no Unicode classes such as \\p{L}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from briolette.compiler.errors import BrioletteError

_CUT = re.compile(r"(?<=[a-z]) (?=[a-z])")


@dataclass(frozen=True)
class Pretokenizer:
    """`ignore_merges`: a word that is a token is taken whole. `add_bos`: used if the file does not say."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def splitter(self, stretch: int = 1 << 16) -> Callable[[str], Iterator[str]]:
        """A function that cuts a text into words; joined they are the text.

        A long text goes through `tokenizers` in stretches of about so many characters, because the answer
        takes 120 bytes a character. One ends before a space between two small ASCII letters: all of the
        expressions here begin a word at such a space, and none looks across it.
        """
        from tokenizers import Regex, pre_tokenizers  # 30 ms that decoding never needs

        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in self.patterns])

        def words(text: str) -> Iterator[str]:
            start = 0
            while start < len(text):
                cut = _CUT.search(text, start + stretch)
                end = cut.start() if cut else len(text)
                yield from (word for word, _ in split.pre_tokenize_str(text[start:end]))
                start = end

        return words


# Contractions are spelt out in both cases: (?i:'s) would also take the long s, U+017F.
_SHORT = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
# A capital may begin a word but not follow a small letter in it.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%(short)s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%(short)s"
    r"|\p{N}%(digits)s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)

_DEFAULT = Pretokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_PLAIN = Pretokenizer((_GPT2,))
_DIGITS = Pretokenizer((r"\p{N}", _GPT2))
_LLAMA3 = Pretokenizer((_WORDS % "{1,3}",))
_QWEN2 = Pretokenizer((_WORDS % "",))
_QWEN35 = Pretokenizer((_SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,))
_FALCON = Pretokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))
_DEEPSEEK_CODER = Pretokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"))
_GPT4O = Pretokenizer((_CASED % {"short": f"(?:{_SHORT})?", "digits": "{1,3}"},))
_TEKKEN = Pretokenizer((_CASED % {"short": "", "digits": ""},), ignore_merges=True, add_bos=True)

PRETOKENIZERS: dict[str, Pretokenizer] = {
    "default": _DEFAULT,
    **dict.fromkeys(["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "exaone4", "modern-bert"], _PLAIN),
    **dict.fromkeys(["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], _DIGITS),
    **dict.fromkeys(["dbrx", "smaug-bpe"], _LLAMA3),
    **dict.fromkeys(
        ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        replace(_LLAMA3, ignore_merges=True, add_bos=True),
    ),
    "glm4": replace(_LLAMA3, ignore_merges=True),
    **dict.fromkeys(["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"], _QWEN2),
    "qwen35": _QWEN35,
    "falcon": _FALCON,
    "deepseek-coder": _DEEPSEEK_CODER,
    **dict.fromkeys(["gpt-4o", "llama4"], _GPT4O),
    "tekken": _TEKKEN,
}


def pretokenizer(name: str, source: str) -> Pretokenizer:
    """The pre-tokenizer called `name`; raises BrioletteError, with the names that are known, for another."""
    if name not in PRETOKENIZERS:
        raise BrioletteError(
            f"{source}: tokenizer.ggml.pre is {name!r}, a way to split words that briolette does not know; "
            f"it knows {', '.join(PRETOKENIZERS)}"
        )
    return PRETOKENIZERS[name]


def _byte_symbols() -> list[str]:
    # Printable Latin-1 characters stand for themselves; the other bytes take U+0100 and on, in order
    # (GPT-2's encoder.py, bytes_to_unicode).
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_SYMBOLS = [symbol.encode() for symbol in _byte_symbols()]  # byte -> its symbol, in UTF-8
SYMBOL_BYTES = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
