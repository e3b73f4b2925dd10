"""The launch plan of a tiny model, kept as a file so that a change of it is reviewed as a diff.

`pytest tests/cuda/test_plan_golden.py --update-golden` writes it anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from briolette.backends.base import Options
from briolette.backends.cuda.compilation import GROUPS
from briolette.backends.cuda.engine import compilation_of
from briolette.backends.cuda.steps import Argument, Launch, Parts, Size
from briolette.compiler.dims import evaluate
from briolette.engine.gguf import open_gguf
from briolette.engine.source import source_of

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden" / "cuda"
MODEL = "gemma4_moe"


def lines() -> Iterator[str]:
    """Every launch: the kernel (its family, and a number that tells kernels of a family apart), grid, threads, shared
    memory, and where arguments lie."""
    compilation = compilation_of(source_of(None, open_gguf(TESTS / "oracle" / "models" / f"{MODEL}.gguf").header))
    made = compilation.compiled(Options(context=64, cache="f16", chunk=16, weights="packed"), GROUPS[0])
    layout, families = made.layout, {kernel.name: kernel.family for kernel in made.kernels}
    yield from (f"weights[{i}] {w.get('name') or 'decoded ' + w.args[0]['name']}" for i, w in enumerate(layout.weights))
    yield from (f"staged[{i}] {w['name']}" for i, w in enumerate(layout.staged))
    yield from (f"planes[{i}] {p.slot}.{p.plane} {p.heads} x {p.size} {p.dtype}" for i, p in enumerate(layout.planes))
    yield f"scratch {layout.scratch}, arena {made.arena}"
    numbers: dict[str, dict[str, int]] = {}
    for name, program in made.programs.items():
        yield f"{name}, up to {program.rows} tokens:"
        for launch in program.launches:
            known = numbers.setdefault(families[launch.kernel], {})
            number = known.setdefault(launch.kernel, len(known))
            yield f"  {families[launch.kernel]}#{number} {shown(launch)}"


def shown(launch: Launch) -> str:
    grid = " x ".join(size(part) for part in launch.grid)
    shared = f" + {launch.shared} bytes" if launch.shared else ""
    return f"[{grid}] x {launch.threads}{shared} ({', '.join(map(place, launch.arguments))})"


def size(part: Size) -> str:
    return f"ceil({part.of} / {part.each})" if isinstance(part, Parts) else str(part)


def place(argument: Argument) -> str:
    one = argument.table in ("arena", "out", "scratch", "tokens", "positions", "slots", "rows")
    where = argument.table if one else f"{argument.table}[{argument.index}]"
    fixed = isinstance(argument.offset, int) and evaluate(argument.offset, {}) == 0
    return where if fixed else f"{where} + {argument.offset}"


def test_the_launch_plan_is_as_reviewed():
    found = list(lines())
    file = GOLDEN / f"{MODEL}.launches"
    if os.environ.get("UPDATE_GOLDENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(found) + "\n", encoding="utf-8")
    wanted = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    assert found == wanted, f"{file.name}: read the diff, then --update-golden"
