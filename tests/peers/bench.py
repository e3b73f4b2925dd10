"""`make bench`: speed, start-up and memory on this machine, llama.cpp in turns with ours.

Writes docs/benchmarks.md, docs/benchmarks.json and a picture for each model, by the machinery of `briolette bench`.
Figures depend on the machine: the page names it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from briolette.engine.bench.chart import Panel, Point, figure
from briolette.engine.bench.host import machine, versions
from briolette.engine.bench.measure import Result
from briolette.engine.bench.peer import Beside, script_of
from briolette.engine.bench.run import Measured, run
from briolette.engine.bench.show import measured_json, shares
from briolette.engine.bench.wanted import Wanted
from briolette.engine.gguf import open_gguf
from briolette.engine.model import context_length, cores
from briolette.engine.telling import Telling
from briolette.engine.words import many

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import models  # noqa: E402

PEER = "llama.cpp"
PROMPT = "The capital of France is"


class Lines:
    """Progress as lines, for a log."""

    def __init__(self, message: str):
        print(f"  {message}", file=sys.stderr)

    def __call__(self, done: int, wanted: int) -> None:
        pass

    def close(self) -> None:
        pass


def compare(path: Path, options: argparse.Namespace) -> Measured:
    """Both engines on one file, at the depths that its context has room for."""
    source = open_gguf(path)
    limit = context_length(source.header) or max(options.depth)
    depths = tuple(depth for depth in options.depth if depth + options.prompt <= limit)
    wanted = Wanted(
        prompts=(options.prompt,),
        generated=(options.generate,),
        depths=depths,
        threads=tuple(sorted({1, min(2, cores())})),
        prefill=("exact", "fast"),
        logits=("last", "all"),
        repetitions=options.runs,
    )
    told = {"weights": None, "chunk": 256, "spec": None}
    return run(source, wanted, told, Telling(lambda message: nullcontext(), Lines), beside=Beside(PEER, options.peer))


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


# --- the page -----------------------------------------------------------------------------------------


def cell(one: Result) -> str:
    return f"{one.median:.1f} ({min(one.rates):.1f} to {max(one.rates):.1f})"


def section(name: str, found: Measured, picture: str) -> list[str]:
    """A model's table, a row for each case with all engines, and its picture."""
    engines = list(dict.fromkeys(one.subject for one in found.results))
    ours = [engine for engine in engines if engine != PEER]
    head = [*engines, *(f"{engine} / {PEER}" for engine in ours), "read", "multiplied"]
    lines = [f"## {name}", "", f"| test | depth | threads | {' | '.join(head)} |", "|---|" + "---:|" * (len(head) + 2)]
    cases = dict.fromkeys((one.case, one.threads) for one in found.results)
    for case, threads in sorted(cases, key=lambda c: (c[0].kind != "prefill", c[0].logits == "all", c[0].depth, c[1])):
        by = {one.subject: one for one in found.results if (one.case, one.threads) == (case, threads)}
        ratios = {engine: next(iter(found.ratios(by[engine]).values()), None) for engine in ours if engine in by}
        told = shares(by["briolette"], found.ceilings[threads])
        row = [str(case), f"{case.depth:,}", f"{threads}"]
        row += [cell(by[engine]) if engine in by else "" for engine in engines]
        row += [f"**{ratios[engine]:.2f}**" if ratios.get(engine) else "" for engine in ours]
        row += [f"{told['read_share']:.0%}", f"{told['arithmetic_share']:.0%}"]
        lines.append(f"| {' | '.join(row)} |")
    limits = "; ".join(
        f"{many(n, 'thread')} {c.read / 1e9:.1f} GB/s and {c.integers / 1e9:.0f} GMAC/s of bytes"
        for n, c in found.ceilings.items()
    )
    return [*lines, "", f"At most here: {limits}.", "", f"![{name}, by depth and by threads]({picture})", ""]


def chart(found: Measured) -> str:
    """Prefill and decode by depth, with all threads, and by threads in an empty cache."""
    most = max(found.ceilings)

    def panel(title: str, label: str, chosen: list[Result], by: Any) -> Panel:
        lines: dict[str, list[Point]] = {}
        for one in chosen:
            lines.setdefault(one.subject, []).append(Point(by(one), one.median, min(one.rates), max(one.rates)))
        return Panel(title, label, lines)

    panels = []
    for kind in ("prefill", "decode"):
        these = [one for one in found.results if one.case.kind == kind and one.case.logits == "last"]
        deep, wide = [o for o in these if o.threads == most], [o for o in these if o.case.depth == 0]
        panels.append(
            panel(f"{kind}, {many(most, 'thread')}: tok/s", "tokens in the cache", deep, lambda o: o.case.depth)
        )
        panels.append(panel(f"{kind}, empty cache: tok/s", "threads", wide, lambda o: o.threads))
    return figure(panels)


def write(options: argparse.Namespace, measured: dict[str, Measured], start: dict[str, Any]) -> None:
    """The page a person reads, its pictures, and the figures behind it."""
    folder: Path = options.output
    today = datetime.date.today().isoformat()
    peer = next(iter(measured.values())).peer
    told = ", ".join(f"{name} {number}" for name, number in (versions() | peer).items())
    lines = [
        "# Speed",
        "",
        f"Made by `make bench` on {today}: {machine()}; {told} (as llama-cpp-python, built for this processor).",
        "",
        f"Tokens a second, medians of {many(options.runs, 'run')} (lowest to highest), the engines in turns. Prefill "
        f"is a prompt of {options.prompt} tokens, with the last one's logits unless all are asked for; decode is "
        f"{options.generate} tokens one by one; before each, the cache holds as many tokens as `depth` says. The last "
        "two columns are shares, of briolette with exact prefill, of what this machine can read and multiply at most, "
        "measured in the same run; [cli.md](cli.md) says how.",
        "",
    ]
    folder.mkdir(exist_ok=True)
    for name, found in measured.items():
        picture = f"benchmarks-{name}.svg"
        (folder / picture).write_text(chart(found), encoding="utf-8")
        lines += section(name, found, picture)
    lines += [
        "## From process start to the first token",
        "",
        f"Of {start['model']} ({start['file_mb']:.0f} MB), with a context of 4096; the mapped file is part of the "
        "memory.",
        "",
        "| engine | seconds | peak memory, MB |",
        "|---|---:|---:|",
        *(f"| {name} | {row['seconds']:.2f} | {row['peak_mb']:.0f} |" for name, row in start["engines"].items()),
        "",
    ]
    (folder / "benchmarks.md").write_text("\n".join(lines), encoding="utf-8")
    models_json = {name: measured_json(found, options.runs, False) for name, found in measured.items()}
    data = {"machine": machine(), "date": today, "start": start, "models": _nameless(models_json)}
    (folder / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(lines))


def _nameless(models_json: dict[str, Any]) -> dict[str, Any]:
    """Without where the files lie on this machine."""
    for found in models_json.values():
        found["model"]["file"] = Path(found["model"]["file"]).name
    return models_json


def model_files() -> list[Path]:
    """Gemma 3 270M, and SmolLM2 135M where it is installed."""
    found = [models.gemma3()]
    try:
        found.append(models.smollm2())
    except SystemExit as missing:
        print(missing, file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depth", type=lambda text: [int(part) for part in text.split(",")], default=[0, 4096, 32000])
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    parser.add_argument("--model", type=Path, action="append", default=[], help="measure this GGUF file, too")
    options = parser.parse_args()
    measured: dict[str, Measured] = {}
    for path in [*model_files(), *options.model]:
        print(path.stem, file=sys.stderr)
        measured[path.stem] = compare(path, options)
    write(options, measured, starts(models.gemma3(), options))


if __name__ == "__main__":
    main()
