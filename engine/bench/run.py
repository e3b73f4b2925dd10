"""One benchmark of one model: engines loaded for each number of threads, measured in turn, profiled where wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from briolette.backends.base import PREFILL
from briolette.backends.cpu import ceilings
from briolette.backends.cpu.ceilings import Ceilings
from briolette.compiler.errors import BrioletteError
from briolette.engine.gguf import GgufFile
from briolette.engine.model import context_length, load
from briolette.engine.telling import Telling
from briolette.engine.words import many

from .measure import Case, Result, Subject, measure
from .ours import Briolette
from .peer import Peer
from .profile import Spent, profile
from .synthetic import Synthetic
from .wanted import Wanted


@dataclass
class Measured:
    """What a benchmark found. `ceilings` by threads; `about` the model and how it was loaded, as plain values."""

    about: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[int, Ceilings] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    profiles: list[Spent] = field(default_factory=list)
    trained: int | None = None  # positions that the model was made for
    peer: dict[str, str] = field(default_factory=dict)  # versions

    def ratio(self, one: Result) -> float | None:
        """How many times as fast as a peer in the same case; None for peers, and where there was none."""
        peers = [r for r in self.results if (r.threads, r.case) == (one.threads, one.case) and r.subject in self.peer]
        return None if not peers or one.subject in self.peer else one.median / peers[0].median


def run(
    source: GgufFile,
    wanted: Wanted,
    options: dict[str, Any],
    telling: Telling,
    profiled: bool = False,
    peer: tuple[str, Path] | None = None,
) -> Measured:
    """Measures everything that is wanted of a model.

    options: of `load`. peer: an engine to take turns with, and the Python that has it. Raises BrioletteError where
    the model or the peer cannot be run.
    """
    if peer is not None and isinstance(source, Synthetic):
        raise BrioletteError(f"{peer[0]} reads files, and there is none of a model that is made up; give a MODEL")
    found = Measured()
    for threads in wanted.threads:
        with _loaded(source, wanted, options, telling, peer, threads) as (ours, others):
            found.peer |= {other.name: other.version for other, _ in others}
            found.about, found.trained = _about(source, ours[0][0]), context_length(source.header)
            with telling.busy(f"measuring what {many(threads, 'thread')} can do at most"):
                before = ceilings.measure(threads)
            subjects: list[tuple[Subject, list[Case]]] = [*ours, *others]
            bar = telling.bar(f"measuring with {many(threads, 'thread')}")
            try:
                found.results += measure(subjects, wanted.repetitions, bar)
            finally:
                bar.close()
            for subject, cases in ours if profiled else ():
                with telling.busy("taking the time of every kernel"):
                    found.profiles += _profiles(subject, cases, wanted.repetitions)
            found.ceilings[threads] = before.best(ceilings.measure(threads))
    return found


def _about(source: GgufFile, subject: Briolette) -> dict[str, Any]:
    model = subject.model
    named = "synthetic" if isinstance(source, Synthetic) else "file"
    options = {"kv": model.options.cache, "weights": model.options.weights, "chunk": model.options.chunk}
    told = {"name": model.header.metadata.get("general.name"), "spec": model.source.name, "bytes": source.size}
    return {"model": {"file": None, "synthetic": None} | {named: str(source.path)} | told, "options": options}


def _profiles(subject: Briolette, cases: Sequence[Case], repetitions: int) -> Iterator[Spent]:
    """Where the time goes in each case."""
    for depth in sorted({case.depth for case in cases}):
        subject.fill(depth)
        for case in cases:
            if case.depth == depth:
                yield profile(subject, case, repetitions)


@contextmanager
def _loaded(
    source: GgufFile,
    wanted: Wanted,
    options: dict[str, Any],
    telling: Telling,
    peer: tuple[str, Path] | None,
    threads: int,
) -> Iterator[tuple[list[tuple[Briolette, list[Case]]], list[tuple[Peer, list[Case]]]]]:
    """The engines that take turns, loaded and compiled, with what each is tested in."""
    ours: list[tuple[Briolette, list[Case]]] = []
    others: list[tuple[Peer, list[Case]]] = []
    try:
        with telling.busy(f"loading the model for {many(threads, 'thread')}"):
            for prefill in wanted.prefill:
                model = load(source, threads=threads, context=wanted.context, prefill=prefill, **options)
                options = options | {"weights": model.options.weights}  # all keep them as the first does
                cases = wanted.cases(first=not ours)
                name = "briolette" if prefill == PREFILL[0] else f"briolette, {prefill} prefill"
                ours.append((Briolette(model, name), cases))
                ours[-1][0].prepare(cases)
            if peer is not None:
                engine, kv = ours[0][0].engine, ours[0][0].model.options.cache
                other = Peer(*peer, source.shards[0], threads, wanted.context, kv, engine.token_ids)
                others.append((other, wanted.cases()))
        yield ours, others
    finally:
        for subject, _ in [*ours, *others]:
            subject.close()
