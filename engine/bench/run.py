"""One benchmark of one model: our engines one after the other, measured in turns with a peer, profiled where wanted."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from briolette.backends.base import PREFILL
from briolette.backends.cpu import ceilings
from briolette.backends.cpu.ceilings import Ceilings
from briolette.compiler.errors import BrioletteError
from briolette.engine.available import available_memory
from briolette.engine.gguf import GgufFile
from briolette.engine.memory import Planner
from briolette.engine.model import Model, context_length, load
from briolette.engine.telling import Telling
from briolette.engine.words import many, size

from .measure import Case, Result, Subject, measure
from .ours import Briolette
from .peer import Beside, Peer, PeerCache
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

    def ratios(self, one: Result) -> dict[str, float]:
        """How many times as fast as each of a peer's caches, by their types, in the same case and in the same turns;
        none for peers."""
        if one.subject in self.peer:
            return {}
        same = (one.turn, one.threads, one.case)
        beside = [r for r in self.results if r.subject in self.peer and (r.turn, r.threads, r.case) == same]
        return {peer.kv: one.median / peer.median for peer in beside}


def run(
    source: GgufFile,
    wanted: Wanted,
    options: dict[str, Any],
    telling: Telling,
    profiled: bool = False,
    beside: Beside | None = None,
) -> Measured:
    """Measures everything that is wanted of a model.

    options: of `load`. There is one engine of ours at a time: one cache or way of prefill after the other, each in
    turns with all caches of a peer. Raises BrioletteError where the model or the peer cannot be run.
    """
    if beside is not None and isinstance(source, Synthetic):
        raise BrioletteError(f"{beside.name} reads files, and there is none of a model that is made up; give a MODEL")
    found = Measured(trained=context_length(source.header))
    for threads in wanted.threads:
        with telling.busy(f"measuring what {many(threads, 'thread')} can do at most"):
            before = ceilings.measure(threads)
        with ExitStack() as stack:
            peers: list[PeerCache] = []
            for turn, (kv, prefill) in enumerate(wanted.engines()):
                given = {"kv": kv, "prefill": prefill, "threads": threads, "context": wanted.context}
                ours = options | given | {"sequences": max(case.sequences for case in wanted.cases(prefill))}
                with closing(_loaded(source, wanted, ours, telling)) as subject:
                    if beside is not None and not peers:
                        peers = _peers(source, wanted, beside, subject, stack, telling)
                        found.peer = {peer.name: peer.peer.version for peer in peers}
                    results, profiles = _turns(subject, wanted, peers, telling, profiled)
                    found.about = found.about or _about(source, subject, wanted)
                    options = options | {"weights": subject.model.options.weights}  # all keep them as the first does
                for one in results:
                    one.turn = turn
                found.results += results
                found.profiles += profiles
                del subject  # its memory is free before the next one is made, which may need it
                gc.collect()
        found.ceilings[threads] = before.best(ceilings.measure(threads))
    return found


def _loaded(source: GgufFile, wanted: Wanted, options: dict[str, Any], telling: Telling) -> Briolette:
    """An engine of ours, loaded and compiled for its tests."""
    with telling.busy(f"loading the model for {many(options['threads'], 'thread')}"):
        model, prefill = load(source, **options), options["prefill"]
        _check_room(model)
        subject = Briolette(model, "briolette" if prefill == PREFILL[0] else f"briolette, {prefill} prefill")
        try:
            subject.prepare(wanted.cases(prefill))
        except BaseException:
            subject.close()
            raise
    return subject


def _check_room(model: Model) -> None:
    """Raises BrioletteError where the caches of several sequences do not fit into memory: nothing is allocated yet."""
    if model.options.sequences == 1:
        return
    needed = Planner(model.file, model.source, model.options.cache).beside_file(model.options)
    have = available_memory()
    if needed > have.bytes:
        raise BrioletteError(
            f"with {many(model.options.sequences, 'sequence')} of {many(model.options.context, 'token')}, "
            f"{model.header.source} takes {size(needed)} of memory beside the file, more than the {size(have.bytes)} "
            f"that {have.source}: fewer --sequences, less --depth, or a compressed cache (--kv balanced)"
        )


def _peers(
    source: GgufFile, wanted: Wanted, beside: Beside, ours: Briolette, stack: ExitStack, telling: Telling
) -> list[PeerCache]:
    """A peer's caches. Its process ends with the stack."""
    with telling.busy(f"loading the model with {beside.name}"):
        ids = ours.engine.token_ids
        sequences = wanted.most_sequences
        peer = Peer(beside.name, beside.python, source.shards[0], ours.threads, wanted.context, ids, sequences)
    stack.enter_context(closing(peer))
    types = [ours.kv if kv is None else kv for kv in wanted.caches]
    return [PeerCache(peer, kv) for kv in beside.types(types)]


def _turns(
    ours: Briolette, wanted: Wanted, peers: Sequence[PeerCache], telling: Telling, profiled: bool
) -> tuple[list[Result], list[Spent]]:
    """An engine of ours in turns with a peer's caches; then alone, with where its time goes."""
    cases = wanted.cases(ours.model.options.prefill)
    subjects: list[tuple[Subject, list[Case]]] = [(subject, cases) for subject in (ours, *peers)]
    bar = telling.bar(f"measuring {ours.name}, {ours.kv} cache, with {many(ours.threads, 'thread')}")
    try:
        results = measure(subjects, wanted.repetitions, bar)
    finally:
        bar.close()
    if not profiled:
        return results, []
    with telling.busy("taking the time of every kernel"):
        return results, list(_profiles(ours, cases, wanted.repetitions))


def _about(source: GgufFile, subject: Briolette, wanted: Wanted) -> dict[str, Any]:
    model = subject.model
    named = "synthetic" if isinstance(source, Synthetic) else "file"
    kv = [each or model.options.cache for each in wanted.caches]
    options = {"kv": kv, "weights": model.options.weights, "chunk": model.options.chunk}
    told = {"name": model.header.metadata.get("general.name"), "spec": model.source.name, "bytes": source.size}
    return {"model": {"file": None, "synthetic": None} | {named: str(source.path)} | told, "options": options}


def _profiles(subject: Briolette, cases: Sequence[Case], repetitions: int) -> Iterator[Spent]:
    """Where the time goes in each case."""
    for depth in sorted({case.depth for case in cases}):
        subject.fill(depth)
        for case in cases:
            if case.depth == depth:
                yield profile(subject, case, repetitions)
