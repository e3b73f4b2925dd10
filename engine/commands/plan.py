"""`briolette plan`: the memory a model will take, before anything is loaded, and the largest context that fits."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from briolette.compiler.cost import kv_token_bytes
from briolette.compiler.errors import BrioletteError
from briolette.compiler.policy import policy_named
from briolette.compiler.text import layer_ranges
from briolette.engine.available import Available, memory_for, parsed_size
from briolette.engine.backends import backend_named, room_of
from briolette.engine.fitting import fitted
from briolette.engine.gguf import open_gguf
from briolette.engine.memory import KvMemory, MemoryPlan, Planner
from briolette.engine.model import context_length, options_for
from briolette.engine.source import source_of
from briolette.engine.words import many, size

from .terminal import busy, result, result_json, table

FITS, TOO_LARGE = 0, 1  # exit codes
PLAIN = "f16"  # what a coded cache is held against
MOST_POSITIONS = 2**31 - 1  # positions are counted in 32 bits
Row = tuple[str, int, str]  # what takes memory, bytes, about it


def plan(path: str, backend: str, memory: str | None, as_json: bool, options: dict[str, Any]) -> int:
    """Prints the plan; gives the exit code."""
    file = open_gguf(path)
    given, missing = _given(backend, memory)
    with busy("compiling"):
        source = source_of(options["spec"], file.header)
        chosen = options["weights"] or backend_named(backend).default_weights()
        given_for = [options[name] for name in ("kv", "threads", "context", "chunk")]
        engine = options_for(file, *given_for, chosen, sequences=options["sequences"], made=source)
        if options["weights"] is None and room_of(backend) is None:
            engine = fitted(file, source, engine, backend, given)
        planner = Planner(file, source, engine.cache, backend)
        planned = planner.plan(engine)
        limit = context_length(file.header)
        chunked = replace(engine, chunk=options["chunk"])
        largest = planner.largest(chunked, given.bytes, limit or MOST_POSITIONS)
        least = planner.plan(replace(engine, context=1, chunk=1)).needed
        coded = policy_named(engine.cache).coded
        plain = Planner(file, source, PLAIN, backend).plan(engine).kv_bytes if coded else None
    fits = planned.needed <= given.bytes
    module = source.module
    whole = sum(kv_token_bytes(module, "f32").values())
    kept = "f32" if sum(kind.token_bytes for kind in planned.kv) == whole else engine.cache
    if as_json:
        result_json(
            {"file": str(file.path), "spec": module.name}
            | figures(planned)
            | {"kv_type": kept, "kv_f16_bytes": plain, "kv_ratio": plain and plain / planned.kv_bytes}
            | ({"memory": None, "memory_source": missing, "fits": None} if missing else held_against(given, fits))
            | {"context_length": limit, "largest_context": None if missing else largest}
        )
    else:
        result(table(rows(planned, kept, plain), "lr"))
        unknown = [f"Whether it fits is not known: {missing}. --memory 24GB holds it against a device with so much."]
        result("\n" + "\n".join(unknown if missing else verdict(planned, given, largest, limit, least)))
    return FITS if fits or missing else TOO_LARGE


def _given(backend: str, memory: str | None) -> tuple[Available, str]:
    """What the plan is held against: what was said, else what there is now; and why that is not known, if so."""
    if memory is not None:
        return Available(parsed_size(memory), "--memory gives"), ""
    try:
        return memory_for(backend), ""
    except BrioletteError as problem:  # a plan needs no device
        return Available(0, "there is no device"), str(problem)


def held_against(given: Available, fits: bool) -> dict[str, Any]:
    return {"memory": given.bytes, "memory_source": given.source, "fits": fits}


def figures(planned: MemoryPlan) -> dict[str, Any]:
    """The plan as plain values; docs/cli.md says what each is."""
    found = asdict(planned)
    options, kinds, _ = (found.pop(name) for name in ("options", "kv", "on_device"))
    return {
        "backend": found.pop("backend"),
        "context": options["context"],
        "chunk": options["chunk"],
        "kv_type": options["cache"],
        "threads": options["threads"],
        "sequences": options["sequences"],
        "weights_kept": options["weights"],
        **found,
        "kv": planned.kv_bytes,
        "kinds": kinds,
        "device": planned.device,
        "peak": planned.peak,
    }


def rows(planned: MemoryPlan, kept: str | None = None, plain: int | None = None) -> list[list[str]]:
    """The plan as a table, without the lines that come to nothing. kept: the element type in which the KV cache is
    kept, where that is not the one whose numbers it has. plain: bytes that the cache would take in f16."""
    options = planned.options
    type_ = options.cache if kept in (None, options.cache) else f"{kept} with the numbers of {options.cache}"
    type_ += f", {plain / planned.kv_bytes:.2f} times smaller than in {PLAIN}" if plain else ""
    side_by_side = f" of each of {options.sequences} sequences" if options.sequences > 1 else ""
    kv = [[f"KV {kind.kind}", size(kind.bytes), _kept(kind)] for kind in planned.kv]
    in_all = ("KV in all", planned.kv_bytes, f"{type_}, full at {many(options.context, 'token')}{side_by_side}")
    found = [["memory", "bytes", ""]]
    for name, count, about in (_on_device if planned.on_device else _on_host)(planned, in_all):
        found += kv if name == in_all[0] else []
        found += [[name, size(count), about]] if count else []
    host = ["in the host's memory", size(planned.peak), ""]
    return [*found, host if planned.on_device else ["peak", size(planned.peak), ""]]


def _on_host(planned: MemoryPlan, in_all: Row) -> list[Row]:
    """The parts of a plan of which all lies in the host's memory."""
    options = planned.options
    all_but = "all but the experts', " if options.weights == "mixed" else ""
    return [
        ("weights", planned.weights, "mapped from the file, read where used"),
        (
            "packed",
            planned.packed,
            f"weights in the order of the kernels, {all_but}made at load; --weights mapped needs none",
        ),
        (
            "looked up",
            planned.looked_up,
            f"at most: rows for {many(options.context, 'token')}, of tables of {size(planned.tables)}",
        ),
        ("vocabulary", planned.metadata, "mapped too, with all other keys"),
        ("decoded", planned.decoded, "weights kept as f32"),
        in_all,
        ("arena", planned.arena, f"activations, {many(options.chunk, 'token')} a prefill step"),
        ("scratch", planned.scratch, f"of {options.threads} threads" if options.threads > 1 else "of one thread"),
        ("logits", planned.logits, "of two steps"),
        ("addresses", planned.addresses, "of weights and caches, for native code"),
        ("process", planned.process, "estimate: interpreter, libraries, tokenizer, programs"),
        ("compiling", planned.compiling, "estimate: the first time only, then programs are kept"),
    ]


def _on_device(planned: MemoryPlan, in_all: Row) -> list[Row]:
    """The parts of a plan of which most lies on a device, that first."""
    options = planned.options
    return [
        ("weights", planned.packed, "copied to the device in the file's blocks"),
        ("decoded", planned.decoded, "weights kept as f32"),
        in_all,
        ("arena", planned.arena, f"activations and logits, {many(options.chunk, 'token')} a prefill step"),
        ("scratch", planned.scratch, "of attention in parts"),
        ("tables", planned.addresses, "what a step is given, with its rows of tables in the host's memory"),
        ("on the device", planned.device, ""),
        (
            "looked up",
            planned.looked_up,
            f"at most: rows for {many(options.context, 'token')}, of tables of {size(planned.tables)} in the file",
        ),
        ("vocabulary", planned.metadata, "mapped from the file, with all other keys"),
        ("logits", planned.logits, "of two steps"),
        ("process", planned.process, "estimate: interpreter, libraries, tokenizer, programs"),
    ]


def _kept(kind: KvMemory) -> str:
    """What the layers of a kind keep."""
    if not kind.stored:
        read = "reads" if len(kind.layers) == 1 else "read"
        return f"{many(len(kind.layers), 'layer')} that {read} what earlier ones keep"
    ring = f", rings for a window of {kind.window}" if kind.window is not None else ""
    of = f" of {len(kind.layers)}" if len(kind.stored) < len(kind.layers) else ""
    where = f"{many(len(kind.stored), 'layer')}{of} ({layer_ranges(kind.stored)})"
    return f"{kind.token_bytes:,} bytes a token in {where}, {many(kind.positions, 'position')}{ring}"


def verdict(planned: MemoryPlan, given: Available, largest: int, limit: int | None, least: int) -> list[str]:
    """Whether it fits, and what would; `least` is what a context of one token takes."""
    have = f"the {size(given.bytes)} that {given.source}"
    if planned.needed <= given.bytes:
        lines = [f"It fits into {have}; {size(given.bytes - planned.needed)} are left."]
    else:
        lines = [f"It does not fit into {have}; {size(planned.needed - given.bytes)} are missing."]
        if planned.beside_file <= given.bytes:
            lines.append("It would still run, reading parts of the file from the disk again and again.")
    if largest == 0:
        weights = planned.packed + planned.decoded if planned.on_device else planned.weights
        what = (
            f"the weights alone are {size(weights)}"
            if weights > given.bytes
            else f"one token takes {size(least)} already"
        )
        lines.append(f"No context fits: {what}.")
    elif largest != limit:
        lines.append(f"The largest context that fits is {many(largest, 'token')}.")
    elif planned.options.context <= limit:
        lines.append(f"The largest context that fits is {many(largest, 'token')}, all that the model was made for.")
    if limit is not None and planned.options.context > limit:
        all_of = ", which would fit" if largest == limit else ""
        lines.append(
            f"The model was made for {many(limit, 'token')}{all_of}; of {planned.options.context}, the later ones are "
            "beyond what it was trained on."
        )
    return lines
