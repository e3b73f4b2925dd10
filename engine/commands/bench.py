"""`briolette bench`: how fast a model runs here, beside what the machine could do at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from briolette.backends.base import PREFILL
from briolette.backends.cpu import ceilings
from briolette.compiler.errors import BrioletteError
from briolette.engine.available import available_memory
from briolette.engine.backends import backend_named
from briolette.engine.bench.host import machine
from briolette.engine.bench.peer import Beside
from briolette.engine.bench.run import run
from briolette.engine.bench.show import (
    SHARES,
    ceiling_lines,
    measured_json,
    profile_rows,
    profile_title,
    result_rows,
)
from briolette.engine.bench.sizes import sizes
from briolette.engine.bench.synthetic import Synthetic, synthetic
from briolette.engine.bench.wanted import Wanted
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.engine.memory import Planner
from briolette.engine.model import options_for
from briolette.engine.source import source_of
from briolette.engine.words import size

from .telling import tell_of_prefill
from .terminal import TELLING, busy, note, result, result_json, table


def bench(
    path: str | None,
    synthetic_name: str | None,
    wanted: Wanted,
    options: dict[str, Any],
    profiled: bool,
    peer: tuple[str | None, Path, tuple[str, ...]],
    as_json: bool,
) -> None:
    """Measures, and prints tables or JSON."""
    if (path is None) == (synthetic_name is None):
        raise BrioletteError("give a MODEL to measure, or --synthetic with a model's sizes; not both")
    name, python, types = peer
    if name is None and types:
        raise BrioletteError("--peer-kv says how a peer keeps its cache: give --peer llama.cpp, too")
    beside = None if name is None else Beside(name, python, types)
    if path is not None:
        source: GgufFile = open_gguf(path)
    else:
        source, options = made_up(str(synthetic_name), wanted, options)
    found = run(source, wanted, options, TELLING, profiled, beside)
    if as_json:
        result_json(measured_json(found, wanted.repetitions, profiled))
    else:
        result(machine())
        result(table(ceiling_lines(found.ceilings.values())))
        result("")
        result(table(result_rows(found), "lrrrlrrrrr"))
        for spent in found.profiles:
            result(f"\n{profile_title(spent)}")
            result(table(profile_rows(spent, found.ceilings[spent.threads]), "llrrrrrrr"))
        result("\n" + SHARES)
    if "fast" in wanted.prefill:
        tell_of_prefill("fast", found.about["options"]["weights"])
    if found.trained is not None and wanted.context > found.trained:
        note(f"the model was made for {found.trained} tokens; of {wanted.context}, the later ones are beyond that")


def bench_on_device(
    path: str | None, synthetic_name: str | None, wanted: Wanted, options: dict[str, Any], profiled: bool, as_json: bool
) -> None:
    """The same on a GPU, beside the bandwidth with which it copies memory."""
    from briolette.engine.bench.on_device import kernel_rows, measure_on_device, measured_json
    from briolette.engine.bench.on_device import result_rows as rows

    if (path is None) == (synthetic_name is None):
        raise BrioletteError("give a MODEL to measure, or --synthetic with a model's sizes; not both")
    source = open_gguf(path) if path is not None else synthetic(sizes(str(synthetic_name)))
    found = measure_on_device(source, wanted, options, TELLING, profiled)
    if as_json:
        result_json(measured_json(found))
        return
    result(f"{found.device}; it copies memory at {found.copy / 1e9:.0f} GB/s, read and written")
    result(table(rows(found), "lrrrrr"))
    for depth in found.kernels:
        result(f"\nkernels of a token at position {depth}, all calls of each together")
        result(table(kernel_rows(found, depth), "llrrrrr"))


def made_up(name: str, wanted: Wanted, options: dict[str, Any]) -> tuple[Synthetic, dict[str, Any]]:
    """A model of some sizes with random weights, and the options with how these are kept, which it was made for.
    Raises BrioletteError where this machine has no room for it."""
    model = sizes(name)
    with busy("compiling"):
        made = source_of(options["spec"], model.header)
        weights = options["weights"] or backend_named("cpu").default_weights()
        most, sequences = max(wanted.threads), wanted.most_sequences
        needed = 0
        for kv in wanted.caches:  # there is one engine at a time
            engine = options_for(
                synthetic(model), kv, most, wanted.context, options["chunk"], weights, PREFILL[0], sequences, made
            )
            planner = Planner(model.header, made, engine.cache)
            planned, taken, more = planner.plan(engine), planner.measure(engine), 0
            if wanted.prompts and "all" in wanted.logits:
                every, one = (planner.measure(engine, (group,)) for group in ("evaluate", "generate"))
                more = every.arena + every.scratch + max(wanted.prompts) * one.logits
            needed = max(needed, planned.peak + more + ceilings.memory_size())
    have = available_memory()
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
    return synthetic(model, set(taken.mapped) - set(taken.rows)), options | {"weights": weights}
