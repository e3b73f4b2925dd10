"""This package's own engine as a subject of measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import cast

from briolette.backends.base import Engine
from briolette.backends.cpu.engine import CpuEngine
from briolette.backends.cpu.groups import GROUP_OF, rows_of
from briolette.engine.model import Model

from .measure import Case
from .work import Work, Works

IDS = 1000  # different tokens that are used: rows of the tables that are looked up in


def tokens(count: int, start: int, ids: int) -> list[int]:
    """Token ids for positions start, start + 1, …: any will do, for speed does not depend on them."""
    return [(start + i) % min(ids, IDS) for i in range(count)]


def seconds_of(engine: Engine, case: Case, ids: list[int]) -> float:
    """How long the tokens of a case take, behind `case.depth` others."""
    begin = time.perf_counter()
    if case.kind == "prefill":
        engine.step(ids, case.depth, case.logits)
    else:
        for i, token in enumerate(ids):
            engine.step([token], case.depth + i)
    return time.perf_counter() - begin


def steps_of(case: Case, rows_of: Callable[[str], int]) -> tuple[str, list[tuple[int, int]]]:
    """The program that a case runs, and each step's tokens and first position; rows_of: tokens that a step of a program
    takes at most."""
    if case.kind == "decode" or case.tokens == 1:
        return "decode", [(1, case.depth + case.tokens // 2)] * case.tokens  # all as the one in the middle
    program = "all" if case.logits == "all" else "prefill"
    rows, end = rows_of(program), case.depth + case.tokens
    return program, [(min(rows, end - at), at) for at in range(case.depth, end, rows)]


class Briolette:
    """A loaded model."""

    def __init__(self, model: Model, name: str = "briolette"):
        self.model, self.name, self.threads = model, name, model.options.threads
        self.kv = model.options.cache
        self.engine = cast(CpuEngine, model.engine)
        self.restore: Callable[[], None] = lambda: None
        self.filled = 0  # tokens that the cache holds
        self.works: dict[str, Works] = {}

    def prepare(self, cases: Iterable[Case]) -> None:
        """Compiles what the cases run, and packs the weights."""
        for group in dict.fromkeys(map(self.group, cases)):
            self.engine.group(group)

    def group(self, case: Case) -> str:
        """The group of programs that a case runs one of."""
        return GROUP_OF[self.steps(case)[0]]

    def fill(self, depth: int) -> None:
        """See `measure.Subject`. Goes on from what the cache holds."""
        held = self.filled if self.filled <= depth else 0
        if depth > held:
            self.engine.step(self.tokens(depth - held, held), held)
        self.filled = depth
        self.restore = self.engine.checkpoint()

    def run(self, case: Case) -> float:
        """See `measure.Subject`."""
        seconds = seconds_of(self.engine, case, self.tokens(case.tokens, case.depth))
        self.restore()
        return seconds

    def work(self, case: Case) -> Work:
        """See `measure.Subject`."""
        program, steps = self.steps(case)
        return sum((self.counted(program).of_step(*step) for step in steps), Work())

    def counted(self, program: str) -> Works:
        """The work of a program's steps."""
        if program not in self.works:
            self.works[program] = Works(self.engine.plan(program).module)
        return self.works[program]

    def steps(self, case: Case) -> tuple[str, list[tuple[int, int]]]:
        return steps_of(case, lambda program: rows_of(program, self.model.options))

    def tokens(self, count: int, start: int) -> list[int]:
        return tokens(count, start, self.engine.token_ids)

    def close(self) -> None:
        self.model.close()
