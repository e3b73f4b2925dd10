"""Choosing the next token from logits, and ending a reply at a stop string."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from briolette.backends.base import Choice
from briolette.compiler.errors import BrioletteError

_PIECE = 8192  # weights summed at a time
_NUCLEUS_GUESS = 1024  # the likeliest tokens among which top_p looks first, before it sorts them all


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. The defaults are greedy: always the likeliest.

    temperature     0 is greedy; 1 samples as the model says; higher is wilder
    top_k           only the k likeliest tokens; 0 is all
    top_p           only the fewest likeliest tokens that together have this probability; 1 is all
    min_p           only tokens at least this times as probable as the likeliest; 0 is all
    repeat_penalty  divides positive logits, and multiplies negative ones, of recent tokens; 1 does nothing
    repeat_last_n   how many tokens are recent; 0 is none and -1 all
    seed            the same seed makes the same choices; None is different each time

    They work in the order of llama.cpp: penalty, top_k, top_p, min_p, temperature. Values out of range raise
    BrioletteError.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        rules = [
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0 and self.top_k == int(self.top_k), "0 or a whole number of tokens"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repeat_penalty", 0 < self.repeat_penalty < math.inf, "more than 0"),
            ("repeat_last_n", self.repeat_last_n >= -1, "-1, 0 or a number of tokens"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        ]
        for name, valid, wanted in rules:
            if not valid:
                raise BrioletteError(f"{name} is {getattr(self, name)}, but it must be {wanted}")


class Sampler:
    """Chooses tokens. It has its own random numbers, so that one reply does not disturb another."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def wanted(self, history: Sequence[int]) -> int:
        """How many of the likeliest tokens `pick` needs to know; 0 for all."""
        options = self.sampling
        most = 1 if options.temperature == 0 else options.top_k
        if not most or options.repeat_penalty < 1:  # a token of any rank may be drawn, or may rise
            return 0
        return most + (len(self._recent(history)) if self._penalises(history) else 0)  # as many may fall behind others

    def pick(
        self, logits: NDArray[np.float32], history: Sequence[int] = (), among: NDArray[np.int32] | None = None
    ) -> int:
        """The next token. `logits` is float32, shape (vocab_size,), and is not changed.

        `history` holds the ids so far, for the repeat penalty. among: the tokens that the logits are of, where these
        are the `wanted` likeliest ones, by ascending id. Raises BrioletteError where a logit that matters is not a
        number.
        """
        place = self._place(logits, history, among)
        return place if among is None else int(among[place])

    def _place(self, logits: NDArray[np.float32], history: Sequence[int], among: NDArray[np.int32] | None) -> int:
        options = self.sampling
        if self._penalises(history):
            recent = self._recent(history)
            logits = self._penalised(logits, recent if among is None else np.flatnonzero(np.isin(among, recent)))
        if options.temperature == 0:
            best = int(logits.argmax())  # NaN counts as the largest
            if math.isnan(logits[best]):
                not_numbers()
            return best
        tokens = self._candidates(logits)
        kept = _chosen(logits, tokens)
        top = kept.max()
        if not math.isfinite(top):
            not_numbers()
        weights = kept - top
        weights /= np.float32(options.temperature)
        place = _drawn(np.exp(weights, out=weights), self._random.random())
        return place if tokens is None else int(tokens[place])

    def choice(self, history: Sequence[int]) -> Choice:
        """What `pick` would do, for an engine that chooses by itself; takes a random number as `pick` does."""
        options, recent = self.sampling, ()
        if self._penalises(history):
            recent = tuple(self._recent(history).tolist())
        random = self._random.random() if options.temperature > 0 else 0.0
        how = (options.temperature, options.top_k, options.top_p, options.min_p, options.repeat_penalty)
        return Choice(*how, recent, random)

    def _penalises(self, history: Sequence[int]) -> bool:
        options = self.sampling
        return options.repeat_penalty != 1 and options.repeat_last_n != 0 and len(history) > 0

    def _recent(self, history: Sequence[int]) -> NDArray[np.int64]:
        """The tokens that the penalty is for, each once."""
        last = self.sampling.repeat_last_n
        return np.unique(np.asarray(history if last < 0 else history[-last:], np.int64))

    def _penalised(self, logits: NDArray[np.float32], recent: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits with a penalty where `recent` says."""
        penalty = np.float32(self.sampling.repeat_penalty)
        logits = logits.copy()
        values = logits[recent]
        logits[recent] = np.where(values > 0, values / penalty, values * penalty)
        return logits

    def _candidates(self, logits: NDArray[np.float32]) -> NDArray[np.int64] | None:
        """The tokens that top_k, top_p and min_p leave; None for all."""
        options = self.sampling
        tokens = _largest(logits, options.top_k) if 0 < options.top_k < len(logits) else None
        if options.top_p < 1:
            places = self._nucleus(_chosen(logits, tokens))
            tokens = places if tokens is None else tokens[places]
        if options.min_p > 0:
            kept = _chosen(logits, tokens)
            places = np.flatnonzero(kept >= kept.max() + np.float32(math.log(options.min_p)))
            tokens = places if tokens is None else tokens[places]
        return tokens

    def _nucleus(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Where the values are that top_p leaves."""
        top = values.max()
        if not math.isfinite(top):
            not_numbers()
        weights = np.exp(values - top)
        wanted = self.sampling.top_p * weights.sum(dtype=np.float64)
        # The nucleus is mostly small: sorting a quarter of a million tokens for it would take 30 ms.
        for count in (_NUCLEUS_GUESS, len(values)):
            # By logit: probabilities are rounded, and logits that differ may have the same.
            likeliest = _largest(values, count) if count < len(values) else np.arange(len(values))
            likeliest = likeliest[np.lexsort((likeliest, -values[likeliest]))]
            sums = np.cumsum(weights[likeliest], dtype=np.float64)
            if sums[-1] >= wanted:
                break
        return likeliest[: int(np.searchsorted(sums, wanted)) + 1]


def _drawn(weights: NDArray[np.float32], share: float) -> int:
    """Where the sum of the weights up to there, in double precision, first exceeds `share` of them all.

    Summed in pieces: arrays of megabytes take longer to come by than to fill.
    """

    def sums(start: int, before: float) -> NDArray[np.float64]:
        piece = weights[start : start + _PIECE].astype(np.float64)
        piece[0] += before
        return np.cumsum(piece, out=piece)

    befores, total = [], 0.0
    for start in range(0, len(weights), _PIECE):
        befores.append(total)
        total = float(sums(start, total)[-1])
    wanted = share * total
    index = bisect_right(befores, wanted) - 1
    found = np.searchsorted(sums(index * _PIECE, befores[index]), wanted, side="right")
    return min(index * _PIECE + int(found), len(weights) - 1)


def _chosen(logits: NDArray[np.float32], tokens: NDArray[np.int64] | None) -> NDArray[np.float32]:
    return logits if tokens is None else logits[tokens]


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Where the `count` largest values are, in ascending order of place; of equal values the first."""
    # If `count` columns have a maximum of at least x, there are as many values of at least x. The others need
    # not be partitioned, which saves most of the time for the top 64 of 262,144.
    columns = values[: len(values) // 128 * 128].reshape(128, -1).max(axis=0)
    above = np.flatnonzero(values >= _least(columns, count)) if count <= len(columns) else np.empty(0, np.int64)
    places = above if len(above) >= count else np.arange(len(values))  # fewer, too, if there are NaN
    some = values[places]
    least = _least(some, count)
    found = places[~(some < least)]  # NaN among them
    equal = np.flatnonzero(values[found] == least)
    return np.delete(found, equal[len(equal) - (len(found) - count) :])


def _least(values: NDArray[np.float32], count: int) -> np.float32:
    """The least of the `count` largest values."""
    found: np.float32 = np.partition(values, len(values) - count)[len(values) - count]
    return found


def not_numbers() -> None:
    raise BrioletteError(
        "the model's logits are not numbers: the model file is damaged, or a computation overflowed; "
        "check the file, and report it if another engine runs it"
    )


class StopStrings:
    """Ends a text at the first stop string to be complete, however the text is cut into pieces.

    A stop string is not part of the text. So whatever may be the start of one is held back until it is or is
    not; `flush` gives what is held at the end. `matched` is the stop string that was found, or None.
    """

    def __init__(self, stops: Iterable[str] = ()):
        self._stops = [stops] if isinstance(stops, str) else list(stops)
        if not all(isinstance(stop, str) and stop for stop in self._stops):
            raise BrioletteError("a stop string is empty; leave it out")
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain once `text` has come; nothing more after a match."""
        if self.matched is not None:
            return ""
        text = self._held + text
        ends = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            _, place, self.matched = min(ends)
            self._held = ""
            return text[:place]
        longest = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def flush(self) -> str:
        """The text that was held back, when no more will come."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """The most characters at the end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
