"""Speeds of engines that take turns, so that a noisy minute hits all of them: medians, and the spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .work import Work


@dataclass(frozen=True)
class Case:
    """One thing to measure: `tokens` from position `depth` on, all in one prefill or one by one in a decode.

    logits: of a prefill, "last" or "all". sequences: of a decode, how many go on side by side, each with so many
    tokens at such a depth; a step takes one of each.
    """

    kind: str
    tokens: int
    depth: int = 0
    logits: str = "last"
    sequences: int = 1

    @property
    def count(self) -> int:
        """Tokens of all sequences."""
        return self.tokens * self.sequences

    def __str__(self) -> str:
        beside = f" x {self.sequences}" if self.sequences > 1 else ""
        return f"{self.kind} {self.tokens}{beside}{', all logits' if self.logits == 'all' else ''}"


class Subject(Protocol):
    """An engine that is measured, with `threads` threads and a cache of type `kv`.

    It has filled the caches of `sequences`, as many as a case has at most, with `depth` tokens each when a case of that
    depth is run, and has as many after it.
    """

    name: str
    kv: str
    threads: int

    def fill(self, depth: int, sequences: int = 1) -> None: ...

    def run(self, case: Case) -> float:
        """Seconds that the case took."""
        ...

    def work(self, case: Case) -> Work | None:
        """What it has to do at least; None where nobody knows."""
        ...


@dataclass
class Result:
    """The seconds of every repetition of a case. turn: the number of our engine that was loaded meanwhile."""

    subject: str
    kv: str
    threads: int
    case: Case
    work: Work | None
    seconds: list[float] = field(default_factory=list)
    turn: int = 0

    @property
    def rates(self) -> list[float]:
        """Tokens a second, of all sequences together."""
        return [self.case.count / seconds for seconds in self.seconds]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


def measure(
    subjects: Sequence[tuple[Subject, Sequence[Case]]], repetitions: int, progress: Callable[[int, int], None]
) -> list[Result]:
    """Every subject's cases, in turn, `repetitions` times after one that warms up and does not count.

    progress: told (done, wanted) runs.
    """
    depths = sorted({case.depth for _, cases in subjects for case in cases})
    wanted = (repetitions + 1) * sum(len(cases) for _, cases in subjects)
    results, done = [], 0
    for depth in depths:
        here = [(subject, [case for case in cases if case.depth == depth]) for subject, cases in subjects]
        here = [(subject, cases) for subject, cases in here if cases]
        for subject, cases in here:
            subject.fill(depth, max(case.sequences for case in cases))
        turns = sorted(
            ((place, subject, case) for subject, cases in here for place, case in enumerate(cases)), key=lambda t: t[0]
        )
        pairs = [(s, Result(s.name, s.kv, s.threads, case, s.work(case))) for _, s, case in turns]
        for repetition in range(repetitions + 1):
            for subject, result in pairs:
                seconds = subject.run(result.case)
                if repetition:
                    result.seconds.append(seconds)
                done += 1
                progress(done, wanted)
        results += [result for _, result in pairs]
    return results
