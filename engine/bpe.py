"""Byte-pair merging, exact to llama.cpp, over a vocabulary that stays in the model file.

HF `tokenizers` would do the merging too, but its BPE model owns every token and merge: 1.6 s and 280 MB for
Gemma 4 before the first word. It also ranks pairs, which cannot express SentencePiece's rule: the score of
the merged token, equals from the left. A prompt asks for a few hundred of a million pairs; so this keeps a
hash index of a few bytes an entry, and compares with the file's own bytes.
"""

from __future__ import annotations

import heapq
import struct
from array import array
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from briolette.engine.gguf import StringArray

Lookup = Callable[[bytes], int | None]
Rank = Callable[[bytes, bytes], float | None]


_MIX = 0x9E3779B97F4A7C15  # 2^64 by the golden ratio, odd: Knuth's multiplicative hashing
_WORD = struct.Struct("<Q")


def _hashes(strings: StringArray) -> NDArray[np.uint64]:
    """A hash of each string, from its last word of eight bytes to its first; before the text is its length, as it lies
    in the file, which fills the first word up."""
    raw = np.frombuffer(strings.raw(), np.uint8)
    words = np.ndarray((len(raw) - 7,), "<u8", raw.data, 0, (1,))  # at every byte
    lengths, at = strings.lengths, strings.offsets + strings.lengths
    found, rest = lengths.astype(np.uint64), np.flatnonzero(lengths)
    while len(rest):
        at[rest] -= 8
        mixed = (found[rest] ^ words[at[rest]]) * np.uint64(_MIX)
        found[rest] = mixed ^ (mixed >> np.uint64(32))
        lengths[rest] -= 8
        rest = rest[lengths[rest] > 0]
    return found


def _hash(text: bytes) -> int:
    """The same of one string."""
    found, raw = len(text), _WORD.pack(len(text)) + text
    for at in range(len(text), 0, -8):
        mixed = (found ^ _WORD.unpack_from(raw, at)[0]) * _MIX & 0xFFFFFFFFFFFFFFFF
        found = mixed ^ (mixed >> 32)
    return found


class StringIndex:
    """Finds strings in a `StringArray`: 8 to 12 bytes of memory an entry and about 1 us a search.

    Of a string that is there several times, `get` gives the first place if `first`, or else the last.
    """

    def __init__(self, strings: StringArray, first: bool = False):
        self._strings, self._first = strings, first
        # As many buckets as entries or up to twice that; a bucket's entries lie side by side in `order`.
        # The highest bits of a product depend on all of its factors' bits.
        bits = len(strings).bit_length()
        self._shift = 64 - bits
        buckets = _hashes(strings) >> np.uint64(self._shift)
        ends = np.cumsum(np.bincount(buckets.astype(np.int64), minlength=1 << bits), dtype=np.uint32)
        # numpy sorts stably by radix where numbers have 16 bits, three times as fast as where they have more.
        order = np.argsort(buckets.astype(np.uint16), kind="stable")
        order = order[np.argsort((buckets >> np.uint64(16)).astype(np.uint16)[order], kind="stable")]
        # Indexing an array.array makes an int at half the cost of indexing a numpy array.
        self._order = array("I", order.astype(np.uint32).tobytes())
        self._ends = array("I", np.concatenate([np.zeros(1, np.uint32), ends]).tobytes())

    def get(self, text: bytes) -> int | None:
        """Where `text` (UTF-8) is in the array, or None."""
        bucket = _hash(text) >> self._shift
        found = None
        for place in range(self._ends[bucket], self._ends[bucket + 1]):
            entry = self._order[place]
            if self._strings.encoded(entry) == text:
                found = entry
                if self._first:
                    break
        return found


def index(strings: StringArray | list[str], first: bool = False) -> Lookup:
    """A function from UTF-8 bytes to their place in `strings`, or to None; see `StringIndex`."""
    if isinstance(strings, StringArray):
        return StringIndex(strings, first).get
    places = [(text.encode(), place) for place, text in enumerate(strings)]
    return dict(reversed(places) if first else places).get


def merge(symbols: list[bytes], rank: Rank) -> list[bytes]:
    """Merge neighbours for as long as a pair has a rank: lowest rank first, leftmost among equals.

    O(n log n): pairs wait in a heap, and one of which a side has grown or gone meanwhile is dropped.
    """
    count = len(symbols)
    if count < 2:
        return symbols
    text: list[bytes | None] = list(symbols)
    before, after = list(range(-1, count - 1)), [*range(1, count), -1]
    heap: list[tuple[float, int, int, bytes]] = []

    def consider(left: int, right: int) -> None:
        a, b = text[left], text[right]
        assert a is not None
        assert b is not None
        if (priority := rank(a, b)) is not None:
            heapq.heappush(heap, (priority, left, right, a + b))

    for right in range(1, count):
        consider(right - 1, right)
    while heap:
        _, left, right, merged = heapq.heappop(heap)
        a, b = text[left], text[right]
        # Both alive and of the same total length means unchanged: a symbol only ever grows, to the right.
        if a is None or b is None or len(a) + len(b) != len(merged):
            continue
        text[left], text[right] = merged, None
        after[left] = following = after[right]
        if following >= 0:
            before[following] = left
            consider(left, following)
        if before[left] >= 0:
            consider(before[left], left)
    return [symbol for symbol in text if symbol is not None]
