"""`make bench`: speed, start-up and memory on this machine, llama.cpp in turns with ours.

Writes docs/benchmarks.md, docs/benchmarks.json and pictures, by the machinery of `briolette bench`. Figures depend on
the machine: the page names it. `--without` leaves out parts, and fewer `--runs` and a smaller `--depth` take less time;
as in make bench BENCH="--without layers --runs 1".
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.bench.peer import Beside, script_of
from briolette.engine.bench.run import Measured, run
from briolette.engine.bench.wanted import Wanted
from briolette.engine.commands.bench import made_up
from briolette.engine.gguf import open_gguf
from briolette.engine.model import context_length, cores
from briolette.engine.telling import Telling

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(Path(__file__).parent)]
from bench_page import Page, write  # noqa: E402

import models  # noqa: E402

PEER = "llama.cpp"
PROMPT = "The capital of France is"
SYNTHETIC = "gemma4-e2b"
PARTS = ("models", "sequences", "layers", "start")
ENGINE: dict[str, Any] = {"weights": None, "chunk": 256, "spec": None}


class Lines:
    """Progress as lines, for a log."""

    def __init__(self, message: str):
        print(f"  {message}", file=sys.stderr)

    def __call__(self, done: int, wanted: int) -> None:
        pass

    def close(self) -> None:
        pass


TELLING = Telling(lambda message: nullcontext(), Lines)


def most_threads() -> int:
    return min(2, cores())


def wanted_of(options: argparse.Namespace) -> Wanted:
    """A prompt and a generation in an empty cache, with all threads."""
    return Wanted(
        prompts=(options.prompt,),
        generated=(options.generate,),
        depths=(0,),
        threads=(most_threads(),),
        prefill=("exact",),
        logits=("last",),
        repetitions=options.runs,
    )


def by_depth(path: Path, options: argparse.Namespace) -> Measured:
    """Both engines on one file, at the depths that its context has room for; with one thread at the first of them."""
    source, beside = open_gguf(path), Beside(PEER, options.peer)
    limit = context_length(source.header) or max(options.depth)
    depths = tuple(depth for depth in options.depth if depth + options.prompt <= limit)
    wanted = replace(wanted_of(options), depths=depths, prefill=("exact", "fast"), logits=("last", "all"))
    found = run(source, wanted, ENGINE, TELLING, beside=beside)
    if most_threads() > 1:
        alone = run(source, replace(wanted, depths=depths[:1], threads=(1,)), ENGINE, TELLING, beside=beside)
        found.results += alone.results
        found.ceilings = alone.ceilings | found.ceilings
    return found


def by_sequences(path: Path, options: argparse.Namespace) -> Measured:
    """Both engines on one file, with several sequences side by side."""
    wanted = replace(wanted_of(options), prompts=(), sequences=tuple(options.sequences))
    return run(open_gguf(path), wanted, ENGINE, TELLING, beside=Beside(PEER, options.peer))


def by_layers(options: argparse.Namespace) -> dict[int, Measured]:
    """Models of so many layers with random weights, ours alone. Those for which there is no room are left out."""
    found: dict[int, Measured] = {}
    for layers in options.layers:
        wanted = wanted_of(options)
        try:
            source, given = made_up(f"{SYNTHETIC}:{layers}", wanted, ENGINE)
            found[layers] = run(source, wanted, given, TELLING)
        except BrioletteError as problem:
            print(problem, file=sys.stderr)
    return found


# --- start-up -----------------------------------------------------------------------------------------

OURS = (
    "import re, sys, briolette\n"
    "next(briolette.load(sys.argv[1], context=4096).generate(sys.argv[2]))\n"
    # Of this process alone: resource.getrusage would count what its parent took before it began.
    "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
)


def started(command: list[str], cache: Path) -> tuple[float, float]:
    """Seconds from process start to the end, after the first token of a text, and the peak memory in MB."""
    begin = time.perf_counter()
    environment = os.environ | {"BRIOLETTE_CACHE": str(cache)}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - begin, float(output.split()[-1])


def starts(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start-up and memory of both engines, in turns."""
    ours = [sys.executable, "-c", OURS, str(path), PROMPT]
    theirs = [str(options.peer), "-P", str(script_of(PEER)), str(path), "--first-token", PROMPT]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        found = {"briolette, nothing compiled before": [started(ours, cache)], "briolette": [], PEER: []}
        for _ in range(options.runs):
            found["briolette"].append(started(ours, cache))
            found[PEER].append(started(theirs, cache))
    rows = {
        name: {"seconds": statistics.median(r[0] for r in runs), "peak_mb": statistics.median(r[1] for r in runs)}
        for name, runs in found.items()
    }
    return {"model": path.stem, "file_mb": path.stat().st_size / 2**20, "engines": rows}


# --- the command --------------------------------------------------------------------------------------


def model_files() -> list[Path]:
    """Gemma 3 270M, and SmolLM2 135M where it is installed."""
    found = [models.gemma3()]
    try:
        found.append(models.smollm2())
    except SystemExit as missing:
        print(missing, file=sys.stderr)
    return found


def numbers(text: str) -> list[int]:
    found = [int(part) for part in re.split(r",\s*", text)]
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depth", type=numbers, default=[0, 4096, 16384])
    parser.add_argument("--sequences", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--layers", type=numbers, default=[5, 10, 20, 35], help=f"of {SYNTHETIC} with random weights")
    parser.add_argument("--without", choices=PARTS, action="append", default=[], help="leave this part out")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    parser.add_argument("--model", type=Path, action="append", default=[], help="measure this GGUF file, too")
    options = parser.parse_args(arguments)
    parts = [part for part in PARTS if part not in options.without]
    if not parts:
        parser.error("nothing is left to measure")
    files = model_files()
    page = Page(options.runs, options.prompt, options.generate)
    if "models" in parts:
        for path in [*files, *options.model]:
            print(path.stem, file=sys.stderr)
            page.models[path.stem] = by_depth(path, options)
    if "sequences" in parts:
        page.sequences[files[0].stem] = by_sequences(files[0], options)
    if "layers" in parts:
        page.layers[SYNTHETIC] = by_layers(options)
    if "start" in parts:
        page.start = starts(files[0], options)
    print(write(page, options.output))


if __name__ == "__main__":
    main()
