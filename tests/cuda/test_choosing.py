"""Choosing tokens on the device: as `engine/sampling.py` chooses, in order of ids."""

from __future__ import annotations

import numpy as np
import pytest

from briolette.backends.cuda.choosing import THREADS, sample_kernel, wish
from briolette.backends.cuda.source import module_source
from briolette.engine.sampling import Sampler, Sampling

from devices import opened as open_device

VOCABULARY = 1537
HISTORY = [3, 8, 8, 1200, 41]


class Choosing:
    """The kernel on the device."""

    def __init__(self) -> None:
        self.device, kernel = open_device(seed=1), sample_kernel(VOCABULARY)
        self.kernel = self.device.module(module_source([kernel])).kernel(kernel.name)

    def __call__(self, logits: np.ndarray, sampling: Sampling, random: float | None = None) -> int:
        choice = Sampler(sampling).choice(HISTORY)
        if random is not None:
            choice = type(choice)(**{**vars(choice), "random": random})
        wished = wish(choice)
        given, to, chosen = (self.device.alloc(n) for n in (logits.nbytes, wished.nbytes, 4))
        self.device.write(given, logits.view(np.uint8))
        self.device.write(to, wished)
        self.device.launch(self.kernel, (1, 1, 1), THREADS, [given, to, chosen])
        return int(self.device.read(chosen, 4).view(np.int32)[0])


@pytest.fixture(scope="module")
def choosing() -> Choosing:
    return Choosing()


def expected(logits: np.ndarray, sampling: Sampling, random: float) -> int:
    sampler = Sampler(sampling)
    if sampling.repeat_penalty != 1:
        logits = sampler._penalised(logits, HISTORY)
    kept = sampler._candidates(logits)
    kept = np.arange(len(logits)) if kept is None else np.sort(kept)
    weights = np.exp((logits[kept].astype(np.float64) - logits.max()) / sampling.temperature)
    return int(kept[np.searchsorted(np.cumsum(weights), random * weights.sum(), side="right")])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "repeat_penalty": 1.3},
    ],
)
def test_draws(choosing, options):
    logits = (np.random.default_rng(4).normal(size=VOCABULARY) * 3).astype(np.float32)
    logits[[8, 41]] = 9.0  # likely ones that the penalty is for
    logits[500] = -np.inf
    sampling = Sampling(temperature=0.8, seed=1, **options)
    for random in (0.0, 0.123, 0.5, 0.77, 0.999):
        assert choosing(logits, sampling, random) == expected(logits, sampling, random)


def test_the_likeliest(choosing):
    logits = np.random.default_rng(5).normal(size=VOCABULARY).astype(np.float32)
    logits[[700, 900]] = 7.0
    assert choosing(logits, Sampling()) == 700
    logits[8] = 8.0
    assert choosing(logits, Sampling()) == 8
    assert choosing(logits, Sampling(repeat_penalty=1.5)) == 700
    assert choosing(-np.abs(logits) - 1, Sampling()) == int((-np.abs(logits)).argmax())


def test_what_is_no_number(choosing):
    logits = np.zeros(VOCABULARY, np.float32)
    logits[77] = np.nan
    assert choosing(logits, Sampling()) == -1
    assert choosing(np.full(VOCABULARY, np.inf, np.float32), Sampling(temperature=1.0)) == -1
