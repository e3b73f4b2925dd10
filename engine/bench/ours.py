"""This package's own engine as a subject of measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import cast

from briolette.backends.base import Engine
from briolette.backends.cpu.engine import CpuEngine
from briolette.backends.cpu.groups import GROUP_OF, batched, rows_of
from briolette.engine.model import Model

from .measure import Case
from .work import Step, Work, Works

IDS = 1000  # different tokens that are used: rows of the tables that are looked up in
APART = 61  # by so much do the tokens of two sequences differ: experts are chosen by tokens


def tokens(count: int, start: int, ids: int, sequence: int = 0) -> list[int]:
    """Token ids for positions start, start + 1, …: any will do, for speed does not depend on them."""
    return [(start + i + APART * sequence) % min(ids, IDS) for i in range(count)]


def side_by_side(case: Case, ids: int) -> list[list[int]]:
    """The tokens of each step of a decode, one of each sequence."""
    every = [tokens(case.tokens, case.depth, ids, sequence) for sequence in range(case.sequences)]
    return [list(step) for step in zip(*every, strict=True)]


def seconds_of(engine: Engine, case: Case, ids: int) -> float:
    """How long the tokens of a case take, behind `case.depth` others; ids: how many there are."""
    prompt, rows = tokens(case.tokens, case.depth, ids), side_by_side(case, ids)
    sequences = list(range(case.sequences))
    begin = time.perf_counter()
    if case.kind == "prefill":
        engine.step(prompt, case.depth, case.logits)
    elif case.sequences == 1:
        for i, token in enumerate(prompt):
            engine.step([token], case.depth + i)
    else:
        for i, row in enumerate(rows):
            engine.batch(row, [case.depth + i] * case.sequences, sequences)
    return time.perf_counter() - begin


def steps_of(case: Case, rows_of: Callable[[str], int], batched: Callable[[int], str]) -> tuple[str, list[Step]]:
    """The program that a case runs, and its steps; rows_of: tokens that a step of a program takes at most; batched: the
    program for tokens of so many sequences."""
    if case.kind == "decode" or case.tokens == 1:
        middle = case.depth + case.tokens // 2  # all as the one in the middle
        if case.sequences == 1:
            return "decode", [Step(1, middle)] * case.tokens
        program = batched(case.sequences)
        rows = rows_of(program)
        parts = [min(rows, case.sequences - at) for at in range(0, case.sequences, rows)]
        return program, [Step(1, middle, part) for part in parts] * case.tokens
    program = "all" if case.logits == "all" else "prefill"
    rows, end = rows_of(program), case.depth + case.tokens
    return program, [Step(min(rows, end - at), at) for at in range(case.depth, end, rows)]


class Briolette:
    """A loaded model."""

    def __init__(self, model: Model, name: str = "briolette"):
        self.model, self.name, self.threads = model, name, model.options.threads
        self.kv = model.options.cache
        self.engine = cast(CpuEngine, model.engine)
        self.restore: Callable[[], None] = lambda: None
        self.filled: dict[int, int] = {}  # by sequence, the tokens that its cache holds
        self.works: dict[str, Works] = {}

    def prepare(self, cases: Iterable[Case]) -> None:
        """Compiles what the cases run, and packs the weights."""
        for group in dict.fromkeys(map(self.group, cases)):
            self.engine.group(group)

    def group(self, case: Case) -> str:
        """The group of programs that a case runs one of."""
        return GROUP_OF[self.steps(case)[0]]

    def fill(self, depth: int, sequences: int = 1) -> None:
        """See `measure.Subject`. Goes on from what the caches hold."""
        for sequence in range(sequences):
            held = self.filled.get(sequence, 0)
            held = held if held <= depth else 0
            if depth > held:
                self.engine.step(self.tokens(depth - held, held), held, sequence=sequence)
            self.filled[sequence] = depth
        self.restore = self.engine.checkpoint()

    def run(self, case: Case) -> float:
        """See `measure.Subject`."""
        seconds = seconds_of(self.engine, case, self.engine.token_ids)
        self.restore()
        return seconds

    def work(self, case: Case) -> Work:
        """See `measure.Subject`."""
        program, steps = self.steps(case)
        return sum((self.counted(program).of_step(step) for step in steps), Work())

    def counted(self, program: str) -> Works:
        """The work of a program's steps."""
        if program not in self.works:
            self.works[program] = Works(self.engine.plan(program).module)
        return self.works[program]

    def steps(self, case: Case) -> tuple[str, list[Step]]:
        return steps_of(case, lambda program: rows_of(program, self.model.options), batched)

    def tokens(self, count: int, start: int) -> list[int]:
        return tokens(count, start, self.engine.token_ids)

    def close(self) -> None:
        self.model.close()
