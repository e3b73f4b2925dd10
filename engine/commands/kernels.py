"""`briolette show --backend cuda`: the kernels of a decode step, what each takes of a GPU, and the bytes it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from briolette.backends.base import Source
from briolette.backends.cuda.compilation import GROUPS, Compiled
from briolette.backends.cuda.engine import compilation_of, default_weights
from briolette.backends.cuda.nvrtc import Resources, resources
from briolette.backends.cuda.occupancy import LIMITS, occupancy
from briolette.backends.cuda.source import module_source
from briolette.backends.cuda.traffic import Use, needed, uses
from briolette.compiler.cost import Cost
from briolette.compiler.errors import BrioletteError
from briolette.engine.bench.on_device import described, families
from briolette.engine.gguf import open_gguf
from briolette.engine.model import options_for
from briolette.engine.source import source_of
from briolette.engine.subjects import is_architecture, sized
from briolette.engine.words import many

from .terminal import busy, note, result, result_json, table

HEAD = ["kernel", "what it does", "calls", "grid", "threads"]
TAKEN = ["registers", "shared", "spilled", "occupancy"]
RIGHT = "llrrr"


@dataclass(frozen=True)
class Row:
    """A kernel, with all of its launches in a step."""

    use: Use
    calls: int
    weights: int
    cache: int
    values: int

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.values


@dataclass(frozen=True)
class Step:
    """A decode step's kernels, heaviest first; what it needs at the least; what the compiler told, or why not."""

    depth: int
    rows: list[Row]
    needed: Cost
    taken: dict[str, Resources]
    problem: str = ""

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def ratio(self) -> float:
        """How many times as many bytes as weights and cache have."""
        return self.bytes / (self.needed.weights + self.needed.cache)


def kernels(
    path: str, options: dict[str, Any], architecture: int, bandwidth: float | None, source: bool, as_json: bool
) -> None:
    """Prints a table or JSON; or the source of all kernels of generation.

    bandwidth: of memory, GB/s, for the least time that the bytes take.
    """
    if architecture not in LIMITS:
        known = ", ".join(map(str, LIMITS))
        raise BrioletteError(f"--arch takes a compute capability times ten, one of {known}, not {architecture}")
    with busy("compiling"):
        made, depth = _compiled(path, options)
        if source:
            result(made.source, end="")
            return
        step = step_of(made, depth, architecture)
    if as_json:
        result_json(_json(step, architecture, bandwidth))
        return
    result(table(_rows(step, architecture, bandwidth), RIGHT + "r" * 8))
    result("\n" + "\n".join(_totals(step, bandwidth)))
    if step.problem:
        note(f"registers, shared memory and occupancy are not known: {step.problem}")


def _compiled(path: str, options: dict[str, Any]) -> tuple[Compiled, int]:
    """The programs of generation, and the position of the token whose step is told."""
    spec, kv, context, chunk = (options[key] for key in ("spec", "kv", "context", "chunk"))
    if is_architecture(path) and spec is None:
        tree, header = sized(path)
        made: Source = source_of(tree, header)
        given = options_for(header, kv, None, context, chunk, default_weights(), made=made)
    else:
        file = open_gguf(path)
        made = source_of(spec, file.header)
        given = options_for(file, kv, None, context, chunk, default_weights(), made=made)
    return compilation_of(made).compiled(given, GROUPS[0]), given.context - 1


def step_of(made: Compiled, depth: int, architecture: int) -> Step:
    """The decode step at a position, with what its kernels take where a compiler is there to tell."""
    plan = made.programs["decode"].plan
    grouped: dict[str, list[Use]] = {}
    for use in uses(plan, made.layout, depth):
        grouped.setdefault(use.kernel.name, []).append(use)
    rows = [
        Row(some[0], len(some), *(sum(getattr(use, kind) for use in some) for kind in ("weights", "cache", "values")))
        for some in grouped.values()
    ]
    rows.sort(key=lambda row: -row.bytes)
    try:
        taken, problem = resources(module_source(row.use.kernel for row in rows), architecture), ""
    except BrioletteError as error:
        taken, problem = {}, str(error)
    return Step(depth, rows, needed(plan, depth), taken, problem)


def _rows(step: Step, architecture: int, bandwidth: float | None) -> list[list[str]]:
    head = [*HEAD, *(TAKEN if step.taken else []), "MB", *(["us"] if bandwidth else [])]
    found = [head]
    for row in step.rows:
        use = row.use
        grid = " x ".join(str(n) for n in use.grid if n > 1) or "1"
        cells = [families(use), described(use), str(row.calls), grid, str(use.launch.threads)]
        if step.taken:
            taken = step.taken[use.kernel.name]
            share = occupancy(use.launch.threads, taken, architecture, use.launch.shared)
            shared = taken.shared + use.launch.shared
            cells += [str(taken.registers), f"{shared}", f"{taken.spilled}", f"{share:.0%}"]
        cells.append(f"{row.bytes / 1e6:.3f}")
        found.append([*cells, *([f"{row.bytes / bandwidth / 1e3:.1f}"] if bandwidth else [])])
    return found


def _totals(step: Step, bandwidth: float | None) -> list[str]:
    weights, cache, values = (sum(getattr(row, kind) for row in step.rows) for kind in ("weights", "cache", "values"))
    launches = sum(row.calls for row in step.rows)
    least = step.needed.weights + step.needed.cache
    lines = [
        f"A token at position {step.depth}: {many(launches, 'call')} of {many(len(step.rows), 'kernel')} "
        f"move {step.bytes / 1e6:.1f} MB: {weights / 1e6:.1f} MB of weights, "
        f"{cache / 1e6:.1f} MB of KV cache, {values / 1e6:.1f} MB of values between kernels.",
        f"Weights and KV cache alone are {least / 1e6:.1f} MB: kernels move {step.ratio:.3f} times as much.",
    ]
    if bandwidth:
        seconds = step.bytes / bandwidth / 1e9
        rate = f"at most {1 / seconds:.0f} tokens a second"
        lines.append(f"At {bandwidth:g} GB/s that takes {1e3 * seconds:.2f} ms: {rate}.")
    return lines


def _json(step: Step, architecture: int, bandwidth: float | None) -> dict[str, Any]:
    found = []
    for row in step.rows:
        use, taken = row.use, step.taken.get(row.use.kernel.name)
        entry: dict[str, Any] = {
            "kernel": use.kernel.name,
            "families": list(use.families),
            "what": described(use),
            "calls": row.calls,
            "grid": list(use.grid),
            "threads": use.launch.threads,
        }
        if taken is not None:
            entry |= {
                "registers": taken.registers,
                "shared": taken.shared + use.launch.shared,
                "spilled": taken.spilled,
                "occupancy": occupancy(use.launch.threads, taken, architecture, use.launch.shared),
            }
        entry |= {"weights": row.weights, "cache": row.cache, "values": row.values, "bytes": row.bytes}
        found.append(entry | ({"seconds": row.bytes / bandwidth / 1e9} if bandwidth else {}))
    total: dict[str, Any] = {
        "launches": sum(row.calls for row in step.rows),
        "bytes": step.bytes,
        "needed": step.needed.weights + step.needed.cache,
        "ratio": step.ratio,
    }
    if bandwidth:
        total["seconds"] = step.bytes / bandwidth / 1e9
    return {
        "backend": "cuda",
        "architecture": architecture,
        "depth": step.depth,
        "bandwidth": bandwidth,
        "problem": step.problem or None,
        "kernels": found,
        "total": total,
    }
