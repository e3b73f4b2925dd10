"""Sampling: the right distribution, the right candidates, the same choices for a seed; and stop strings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from briolette.compiler.errors import BrioletteError
from briolette.engine.sampling import _PIECE, Sampler, Sampling, StopStrings, _drawn, _largest

PROBABILITIES = np.array([0.4, 0.05, 0.2, 0.1, 0.15, 0.02, 0.07, 0.01])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def draws(sampling: Sampling, logits: np.ndarray = LOGITS, count: int = 20000) -> np.ndarray:
    sampler = Sampler(sampling)
    return np.bincount([sampler.pick(logits) for _ in range(count)], minlength=len(logits))


def fits(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """Pearson's chi-square, against its quantile at 0.999 (Wilson and Hilferty's approximation)."""
    expected = probabilities / probabilities.sum() * counts.sum()
    possible = expected > 0
    degrees = int(possible.sum()) - 1
    if counts[~possible].any():
        return False
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    return degrees == 0 or statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


def only(*tokens: int, power: float = 1) -> np.ndarray:
    return np.where(np.isin(np.arange(8), tokens), PROBABILITIES, 0) ** power


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1, seed=1), PROBABILITIES),
        (Sampling(temperature=2, seed=2), PROBABILITIES**0.5),
        (Sampling(temperature=0.5, seed=3), PROBABILITIES**2),
        (Sampling(temperature=1, top_k=3, seed=4), only(0, 2, 4)),
        (Sampling(temperature=1, top_k=100, seed=5), PROBABILITIES),
        (Sampling(temperature=1, top_p=0.55, seed=6), only(0, 2)),
        (Sampling(temperature=1, top_p=0.65, seed=7), only(0, 2, 4)),
        (Sampling(temperature=1, min_p=0.2, seed=8), only(0, 2, 3, 4)),
        # top_p looks at what top_k left, and not at the temperature, as in llama.cpp.
        (Sampling(temperature=2, top_k=3, top_p=0.7, seed=9), only(0, 2, power=0.5)),
        (Sampling(temperature=1, top_k=1, seed=10), only(0)),
        (Sampling(temperature=1, top_p=1e-9, seed=11), only(0)),
        (Sampling(temperature=1, min_p=1, seed=12), only(0)),
    ],
)
def test_distribution(sampling: Sampling, expected: np.ndarray) -> None:
    assert fits(draws(sampling), expected)


def test_the_distribution_test_can_fail() -> None:
    assert not fits(draws(Sampling(temperature=1.1, seed=1)), PROBABILITIES)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = np.array([1, 3, 3, -math.inf], np.float32)
    assert Sampler(Sampling()).pick(logits) == 1
    assert Sampler(Sampling(temperature=0, top_k=1, top_p=0.1)).pick(logits) == 1


def test_the_seed_decides() -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)

    def picks(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler.pick(logits) for _ in range(50)]

    assert picks(7) == picks(7)
    assert picks(7) != picks(8)
    assert picks(None) != picks(None)


def test_repeat_penalty() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.05], np.float32)
    before = logits.copy()

    def pick(history: Sequence[int], last: int = 64, penalty: float = 1.5, values: np.ndarray = logits) -> int:
        return Sampler(Sampling(repeat_penalty=penalty, repeat_last_n=last)).pick(values, history)

    assert pick([]) == 0
    assert pick([0, 0, 0]) == 1  # once, however often it was said
    assert pick([0, 1]) == 0
    assert pick([0, 3, 3], last=2) == 0
    assert pick([0, 3, 3], last=-1) == 1
    assert pick([0], last=0) == 0
    assert pick([2], values=np.array([-9, -9, -1.0, -1.05], np.float32)) == 3  # a negative logit falls
    assert pick([0], penalty=0.5, values=np.array([1.0, 1.9, 0, 0], np.float32)) == 0
    assert np.array_equal(logits, before)


FLOATS = st.floats(-20, 20, width=32) | st.just(-math.inf)


@settings(max_examples=200)
@given(
    values=st.lists(FLOATS | st.integers(-3, 3).map(float), min_size=1, max_size=80),
    history=st.lists(st.integers(0, 79), max_size=12),
    options=st.fixed_dictionaries(
        {
            "temperature": st.just(0.0) | st.floats(0.1, 5),
            "top_k": st.integers(0, 20),
            "top_p": st.floats(0.01, 1),
            "min_p": st.floats(0, 1),
            "repeat_penalty": st.floats(0.5, 3),
            "repeat_last_n": st.integers(-1, 6),
            "seed": st.integers(0, 99),
        }
    ),
)
def test_the_wanted_tokens_suffice(values: list[float], history: list[int], options: dict[str, float]) -> None:
    """The same token is picked among the likeliest ones as among all."""
    logits, history = np.array(values, np.float32), [token % len(values) for token in history]
    wanted = Sampler(Sampling(**options)).wanted(history)
    assert wanted or options["repeat_penalty"] < 1 or (options["temperature"] and not options["top_k"])
    if not 0 < wanted <= len(values):
        return
    among = np.sort(np.argsort(-logits, kind="stable")[:wanted]).astype(np.int32)

    def picked(*args: object) -> int | str:
        try:
            return Sampler(Sampling(**options)).pick(*args)
        except BrioletteError as error:
            return str(error)

    assert picked(logits[among], history, among) == picked(logits, history)


# Logits that differ by less than a probability can show.
@example(values=[0.0, 1.77e-39], options={"temperature": 1.0, "top_k": 0, "top_p": 0.25, "min_p": 0.0, "seed": 0})
@example(values=[0.0, 1e-10], options={"temperature": 1.0, "top_k": 0, "top_p": 0.25, "min_p": 0.0, "seed": 0})
@settings(max_examples=150)
@given(
    values=st.lists(FLOATS, min_size=1, max_size=300).filter(lambda v: max(v) > -math.inf),
    options=st.fixed_dictionaries(
        {
            "temperature": st.floats(0.1, 5),
            "top_k": st.integers(0, 20),
            "top_p": st.floats(0.01, 1),
            "min_p": st.floats(0, 1),
            "seed": st.integers(0, 99),
        }
    ),
)
def test_what_is_picked_passes_every_filter(values: list[float], options: dict[str, float]) -> None:
    logits = np.array(values, np.float32)
    sampling = Sampling(**options)
    token = Sampler(sampling).pick(logits)
    assert logits[token] > -math.inf
    better = int((logits > logits[token]).sum())
    assert sampling.top_k == 0 or better < sampling.top_k
    weights = np.exp(logits.astype(np.float64) - logits.max())
    assert weights[token] >= sampling.min_p * (1 - 1e-5)
    allowed = np.sort(weights)[::-1][: sampling.top_k or None]
    above = weights[logits > logits[token]]
    assert above.sum() < sampling.top_p * allowed.sum() * (1 + 1e-5)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=2000), st.data())
def test_largest(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    array = np.array(values * 5, np.float32)
    places = _largest(array, count)
    assert places.tolist() == sorted(sorted(range(len(array)), key=lambda at: (-array[at], at))[:count])


@given(st.integers(1, 4 * _PIECE), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1 - 2**-53]))
def test_drawn_goes_by_the_running_sum(count: int, seed: int, share: float) -> None:
    """In pieces as at once, to the last bit."""
    weights = np.random.default_rng(seed).random(count, np.float32) ** 8
    sums = np.cumsum(weights, dtype=np.float64)
    for wanted in (share, float(sums[count // 3] / sums[-1])):
        found = np.searchsorted(sums, wanted * sums[-1], side="right")
        assert _drawn(weights, wanted) == min(int(found), count - 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1), Sampling(temperature=1, top_p=0.5, top_k=2)])
@pytest.mark.parametrize("logits", [[1, math.nan, 2], [math.nan] * 3])
def test_nan_is_an_error(sampling: Sampling, logits: list[float]) -> None:
    with pytest.raises(BrioletteError, match="logits are not numbers"):
        Sampler(sampling).pick(np.array(logits, np.float32))


def test_a_peaked_and_a_flat_nucleus_of_a_large_vocabulary() -> None:
    logits = np.zeros(50000, np.float32)
    assert len({Sampler(Sampling(temperature=1, top_p=0.9, seed=s)).pick(logits) for s in range(20)}) > 15
    logits[40000:40003] = 50
    assert {Sampler(Sampling(temperature=1, top_p=0.9, seed=s)).pick(logits) for s in range(20)} == {
        40000,
        40001,
        40002,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1, but it must be 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 0}, "top_p is 0, but it must be more than 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0"),
        ({"repeat_last_n": -2}, "repeat_last_n is -2"),
        ({"seed": -5}, "seed is -5"),
    ],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(BrioletteError, match=message):
        Sampling(**options)


# Stop strings.


def run(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], str | None]:
    matcher = StopStrings(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, matcher.flush()], matcher.matched


def test_what_may_be_a_stop_string_is_held_back() -> None:
    assert run(["STOP"], ["a S", "T", "x", " STO", "P b", "c"]) == (
        ["a ", "", "STx", " ", "", "", ""],
        "STOP",
    )
    assert run(["STOP"], ["a STO"]) == (["a ", "STO"], None)
    assert run([], ["a", "b"]) == (["a", "b", ""], None)
    assert run("ab", ["a", "b"]) == (["", "", ""], "ab")


def test_the_first_to_be_complete_ends_the_text() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == (["a", ""], "bc")
    assert run(["bcd", "abcd"], ["xabcd"]) == (["x", ""], "abcd")


@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("abc\n", max_size=5), max_size=12),
)
def test_nothing_is_lost_however_the_text_is_cut(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    shown, matched = run(stops, pieces)
    assert (["".join(shown)], matched) == (["".join(run(stops, [text])[0])], run(stops, list(text))[1])
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert ("".join(shown), matched) == (text, None)
    else:
        assert matched in stops
        assert "".join(shown) + matched == text[: min(ends)]
        assert not any(stop in "".join(shown) for stop in stops)


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(BrioletteError, match="stop string is empty"):
        StopStrings(["a", ""])
