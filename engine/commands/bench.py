"""`briolette bench`: how fast a model runs here, beside what the machine could do at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from briolette.backends.base import PREFILL
from briolette.backends.cpu import ceilings
from briolette.backends.cpu.ceilings import Ceilings
from briolette.compiler.errors import BrioletteError
from briolette.engine.bench.host import machine, versions
from briolette.engine.bench.measure import Case, Result, measure
from briolette.engine.bench.ours import Briolette
from briolette.engine.bench.profile import Spent, profile
from briolette.engine.bench.show import (
    SHARES,
    ceiling_lines,
    ceilings_json,
    profile_json,
    profile_rows,
    profile_title,
    result_json_of,
    result_rows,
)
from briolette.engine.model import context_length, cores, load

from .terminal import Bar, busy, note, result, result_json, table

MOST_THREADS = 1024
LOGITS = ("last", "all")


@dataclass(frozen=True)
class Wanted:
    """What is to be measured: every combination of these."""

    prompts: tuple[int, ...]
    generated: tuple[int, ...]
    depths: tuple[int, ...]
    threads: tuple[int, ...]
    prefill: tuple[str, ...]
    logits: tuple[str, ...]
    repetitions: int

    @staticmethod
    def read(
        prompt: Sequence[str],
        generate: Sequence[str],
        depth: Sequence[str],
        threads: Sequence[str] | None,
        prefill: Sequence[str],
        logits: Sequence[str],
        repetitions: int,
    ) -> Wanted:
        """From the command line. Raises BrioletteError where something in it is no number, or no choice there is."""
        wanted = Wanted(
            _numbers(prompt, "--prompt"),
            _numbers(generate, "--generate"),
            _numbers(depth, "--depth", zero=True),
            _numbers(threads, "--threads") if threads else (cores(),),
            _choices(prefill, "--prefill", PREFILL),
            _choices(logits, "--logits", LOGITS),
            repetitions,
        )
        if not wanted.prompts and not wanted.generated:
            raise BrioletteError("there is nothing to measure: --prompt and --generate are both 0")
        if not wanted.threads or max(wanted.threads) > MOST_THREADS:
            raise BrioletteError(f"--threads takes numbers from 1 to {MOST_THREADS}")
        return wanted

    @property
    def context(self) -> int:
        """The positions that the longest case takes."""
        return max(self.depths) + max((*self.prompts, *self.generated))

    def cases(self, first: bool = True) -> list[Case]:
        """All of them; those of single tokens only for the `first` of several engines that differ in prefill."""
        found = []
        for depth in self.depths:
            found += [Case("prefill", n, depth, logits) for logits in self.logits for n in self.prompts]
            found += [Case("decode", n, depth) for n in self.generated if first]
        return found


def _split(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from (part.strip() for part in text.split(","))


def _numbers(texts: Sequence[str], option: str, zero: bool = False) -> tuple[int, ...]:
    """Numbers of a list option, each once; 0 is none unless it counts."""
    parts = list(_split(texts))
    if any(not part.isascii() or not part.isdecimal() or len(part) > 9 for part in parts):
        raise BrioletteError(
            f"{option} takes numbers with commas between them, such as 64,512, not {','.join(texts)!r}"
        )
    return tuple(dict.fromkeys(int(part) for part in parts if zero or int(part)))


def _choices(texts: Sequence[str], option: str, known: Sequence[str]) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(_split(texts)))
    wrong = next((part for part in parts if part not in known), None)
    if wrong is not None:
        raise BrioletteError(f"{option} takes {' or '.join(known)}, not {wrong!r}")
    return parts


def bench(path: str, wanted: Wanted, options: dict[str, Any], profiled: bool, as_json: bool) -> None:
    """Measures, and prints tables or JSON."""
    limits: list[Ceilings] = []
    results: list[Result] = []
    profiles: list[Spent] = []
    for threads in wanted.threads:
        with subjects(path, wanted, options, threads) as found:
            with busy(f"measuring what {threads} threads can do at most"):
                before = ceilings.measure(threads)
            bar = Bar(f"measuring with {threads} threads", least=1)
            try:
                results += measure(found, wanted.repetitions, bar)
            finally:
                bar.close()
            for subject, cases in found if profiled else ():
                with busy("taking the time of every kernel"):
                    profiles += profiles_of(subject, cases, wanted.repetitions)
            limits.append(before.best(ceilings.measure(threads)))
            model = found[0][0].model
            if threads == wanted.threads[0]:
                about = {"file": path, "name": model.header.metadata.get("general.name"), "spec": model.module.name}
                trained = context_length(model.header)
                kept = {"kv": model.options.cache, "weights": model.options.weights, "chunk": model.options.chunk}
    limit = {one.threads: one for one in limits}
    if as_json:
        told = {"profiles": [profile_json(spent, limit[spent.threads]) for spent in profiles]} if profiled else {}
        result_json(
            {"machine": machine(), "versions": versions(), "model": about, "options": kept}
            | {"repetitions": wanted.repetitions, "ceilings": ceilings_json(limits)}
            | {"results": [result_json_of(found, limit[found.threads]) for found in results]}
            | told
        )
    else:
        result(machine())
        result(table(ceiling_lines(limits)))
        result("")
        result(table(result_rows(results, limit), "lrrrlrrrr"))
        for spent in profiles:
            result(f"\n{profile_title(spent)}")
            result(table(profile_rows(spent, limit[spent.threads]), "llrrrrrrr"))
        result("\n" + SHARES)
    if trained is not None and wanted.context > trained:
        note(f"the model was made for {trained} tokens; of {wanted.context}, the later ones are beyond that")


def profiles_of(subject: Briolette, cases: Sequence[Case], repetitions: int) -> Iterator[Spent]:
    """Where the time goes in each case."""
    for depth in sorted({case.depth for case in cases}):
        subject.fill(depth)
        for case in cases:
            if case.depth == depth:
                yield profile(subject, case, repetitions)


@contextmanager
def subjects(
    path: str, wanted: Wanted, options: dict[str, Any], threads: int
) -> Iterator[list[tuple[Briolette, list[Case]]]]:
    """The engines that take turns, loaded and compiled, with what each is tested in."""
    found: list[tuple[Briolette, list[Case]]] = []
    try:
        for prefill in wanted.prefill:
            with busy(f"loading the model for {threads} threads"):
                model = load(path, threads=threads, context=wanted.context, prefill=prefill, **options)
                name = "briolette" if prefill == PREFILL[0] else f"briolette, {prefill} prefill"
                subject = Briolette(model, name)
                cases = wanted.cases(first=not found)
                subject.prepare(cases)
            found.append((subject, cases))
        yield found
    finally:
        for subject, _ in found:
            subject.close()
