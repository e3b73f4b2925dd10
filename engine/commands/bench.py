"""`briolette bench`: how fast a model runs here, beside what the machine could do at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from briolette.backends.base import PREFILL
from briolette.backends.cpu import ceilings
from briolette.backends.cpu.ceilings import Ceilings
from briolette.compiler.errors import BrioletteError
from briolette.compiler.pipeline import front
from briolette.engine.available import available_memory
from briolette.engine.backends import backend_named
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
from briolette.engine.bench.sizes import sizes
from briolette.engine.bench.synthetic import Synthetic, synthetic
from briolette.engine.bench.wanted import Wanted
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.engine.memory import Planner
from briolette.engine.model import architecture, context_length, load, options_for
from briolette.engine.words import size

from .terminal import Bar, busy, note, result, result_json, table


def bench(
    path: str | None, synthetic_name: str | None, wanted: Wanted, options: dict[str, Any], profiled: bool, as_json: bool
) -> None:
    """Measures, and prints tables or JSON."""
    if (path is None) == (synthetic_name is None):
        raise BrioletteError("give a MODEL to measure, or --synthetic with a model's sizes; not both")
    source = open_gguf(path) if path is not None else made_up(str(synthetic_name), wanted, options)
    limits: list[Ceilings] = []
    results: list[Result] = []
    profiles: list[Spent] = []
    for threads in wanted.threads:
        with subjects(source, wanted, options, threads) as found:
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
                about = {"file": path, "synthetic": synthetic_name, "bytes": source.size}
                about |= {"name": model.header.metadata.get("general.name"), "spec": model.module.name}
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


def made_up(name: str, wanted: Wanted, options: dict[str, Any]) -> Synthetic:
    """A model of some sizes with random weights. Raises BrioletteError where this machine has no room for it."""
    model = sizes(name)
    with busy("compiling"):
        module = front(architecture(options["spec"], model.header), model.header)
        weights = options["weights"] or backend_named("cpu").default_weights()
        most = max(wanted.threads)
        engine = options_for(model.header, module, options["kv"], most, wanted.context, options["chunk"], weights)
        planner = Planner(model.header, module, engine.cache)
        planned, taken = planner.plan(engine), planner.measure(engine)
    needed, have = len(wanted.prefill) * planned.allocated + planned.peak - planned.allocated, available_memory()
    told = f"{size(needed)}, {size(planned.weights + planned.packed)} of it weights"
    if needed > have.bytes:
        raise BrioletteError(
            f"{name} takes {told}, and there are {size(have.bytes)} that {have.source}; fewer layers need less: "
            f"--synthetic {name.partition(':')[0]}:LAYERS"
        )
    note(
        f"{model.about}: random weights in its shapes, patterns that repeat, in the formats of a Q4_K_M file; "
        f"running takes {told}"
    )
    return synthetic(model, set(taken.mapped) - set(taken.rows))


def profiles_of(subject: Briolette, cases: Sequence[Case], repetitions: int) -> Iterator[Spent]:
    """Where the time goes in each case."""
    for depth in sorted({case.depth for case in cases}):
        subject.fill(depth)
        for case in cases:
            if case.depth == depth:
                yield profile(subject, case, repetitions)


@contextmanager
def subjects(
    source: GgufFile, wanted: Wanted, options: dict[str, Any], threads: int
) -> Iterator[list[tuple[Briolette, list[Case]]]]:
    """The engines that take turns, loaded and compiled, with what each is tested in."""
    found: list[tuple[Briolette, list[Case]]] = []
    try:
        for prefill in wanted.prefill:
            with busy(f"loading the model for {threads} threads"):
                model = load(source, threads=threads, context=wanted.context, prefill=prefill, **options)
                name = "briolette" if prefill == PREFILL[0] else f"briolette, {prefill} prefill"
                subject = Briolette(model, name)
                cases = wanted.cases(first=not found)
                subject.prepare(cases)
            found.append((subject, cases))
        yield found
    finally:
        for subject, _ in found:
            subject.close()
