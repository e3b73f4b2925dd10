"""`make bench`: speed, start-up and memory on this machine, llama.cpp beside ours in the same run.

Writes docs/benchmarks.md and docs/benchmarks.json. Runs alternate between the two engines, so that a noisy
minute hits both; medians are compared. Figures depend on the machine: the page names it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import briolette
from briolette.engine.model import cores

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import models  # noqa: E402

PROMPT, GENERATED = 512, 64
OURS: tuple[tuple[str, dict[str, Any]], ...] = (("", {}), (", fast prefill", {"prefill": "fast"}))


@dataclass
class Speed:
    """One engine on one model: tokens a second of every run."""

    engine: str
    model: str
    threads: int
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def cells(self) -> str:
        return " | ".join(
            f"{statistics.median(runs):.1f} ({min(runs):.1f} to {max(runs):.1f})"
            for runs in (self.prefill, self.decode)
        )


@contextmanager
def llama_cpp(python: Path, model: Path, threads: int) -> Iterator[Any]:
    """A function that has llama.cpp run a prompt and a generation: seconds of each."""
    script = Path(__file__).with_name("llama_cpp_speed.py")
    command = [str(python), str(script), str(model), "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to_peer, from_peer = process.stdin, process.stdout
        assert to_peer is not None
        assert from_peer is not None
        print("  llama-cpp-python", json.loads(from_peer.readline())["version"], file=sys.stderr)

        def measure() -> tuple[float, float]:
            to_peer.write(json.dumps({"prefill": PROMPT, "decode": GENERATED}) + "\n")
            to_peer.flush()
            answer = json.loads(from_peer.readline())
            return answer["prefill_s"], answer["decode_s"]

        yield measure
        to_peer.close()


def ours(model: briolette.Model) -> tuple[float, float]:
    """Seconds for a prompt in an empty cache, and for single tokens after it."""
    start = time.perf_counter()
    model.engine.step([3 + i % 1000 for i in range(PROMPT)], 0)
    middle = time.perf_counter()
    for i in range(GENERATED):
        model.engine.step([5 + i], PROMPT + i)
    return middle - start, time.perf_counter() - middle


def compare(path: Path, threads: int, runs: int, peer: Path) -> list[Speed]:
    """Both engines on one file, in turn, the peer last; the first run of each warms up and is not counted."""
    loaded = {f"briolette{what}": briolette.load(path, threads=threads, context=4096, **how) for what, how in OURS}
    with llama_cpp(peer, path, threads) as theirs:
        engines = {name: partial(ours, model) for name, model in loaded.items()} | {"llama.cpp": theirs}
        speeds = [Speed(name, path.stem, threads) for name in engines]
        for run in range(runs + 1):
            for speed, measure in zip(speeds, engines.values(), strict=True):
                prefill, decode = measure()
                if run:
                    speed.prefill.append(PROMPT / prefill)
                    speed.decode.append(GENERATED / decode)
    for model in loaded.values():
        model.close()
    return speeds


def start_up(path: Path, cache: Path) -> tuple[float, float]:
    """Seconds from process start to the first token of a text, and the peak memory in MB."""
    code = (
        "import re, sys, briolette\n"
        "next(briolette.load(sys.argv[1]).generate('The capital of France is'))\n"
        # Of this process alone: resource.getrusage would count what its parent took before it began.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    start = time.perf_counter()
    environment = os.environ | {"BRIOLETTE_CACHE": str(cache)}
    output = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, float(output.stdout)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {cores()} cores"


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
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    parser.add_argument("--model", type=Path, action="append", default=[], help="measure this GGUF file, too")
    options = parser.parse_args()
    files, pairs = [*model_files(), *options.model], []
    for path in files:
        for threads in sorted({1, min(2, cores())}):
            print(f"{path.stem}, {threads} threads", file=sys.stderr)
            pairs.append(compare(path, threads, options.runs, options.peer))
    with tempfile.TemporaryDirectory() as folder:
        first = files[0]
        cold = start_up(first, Path(folder))
        warm = [start_up(first, Path(folder)) for _ in range(options.runs)]
    starts = {
        "model": first.stem,
        "file_mb": first.stat().st_size / 2**20,
        "cold_s": cold[0],
        "cold_peak_mb": cold[1],
        "warm_s": statistics.median(w[0] for w in warm),
        "warm_peak_mb": statistics.median(w[1] for w in warm),
    }
    write(options.output, pairs, starts, options.runs)


def write(folder: Path, pairs: list[list[Speed]], starts: dict[str, Any], runs: int) -> None:
    """The page a person reads and the figures behind it."""
    today = datetime.date.today().isoformat()
    versions = {name: version(name) for name in ("numpy", "llvmlite")} | {"python": platform.python_version()}
    lines = [
        "# Speed",
        "",
        f"Made by `make bench` on {today}: {machine()}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f". Tokens a second, medians of {runs} runs (lowest to highest), briolette and llama.cpp in turn. "
        f"A prompt of {PROMPT} tokens with the last one's logits, then {GENERATED} tokens one by one.",
        "",
        "| model | threads | engine | prompt | generation |",
        "|---|---|---|---|---|",
    ]
    for *ours, theirs in pairs:
        for speed in (*ours, theirs):
            lines.append(f"| {speed.model} | {speed.threads} | {speed.engine} | {speed.cells()} |")
        for mine in ours:
            ratios = [
                statistics.median(a) / statistics.median(b)
                for a, b in ((mine.prefill, theirs.prefill), (mine.decode, theirs.decode))
            ]
            lines.append(f"| | | **{mine.engine} / llama.cpp** | **{ratios[0]:.2f}** | **{ratios[1]:.2f}** |")
    lines += [
        "",
        f"From process start to the first token of {starts['model']} ({starts['file_mb']:.0f} MB): "
        f"{starts['cold_s']:.2f} s with nothing compiled before, {starts['warm_s']:.2f} s with the object "
        f"cache. Peak memory, the mapped file included: {starts['cold_peak_mb']:.0f} MB and "
        f"{starts['warm_peak_mb']:.0f} MB.",
        "",
    ]
    folder.mkdir(exist_ok=True)
    (folder / "benchmarks.md").write_text("\n".join(lines))
    data = {"machine": machine(), "date": today, "versions": versions, "start": starts}
    data["speeds"] = [asdict(speed) for pair in pairs for speed in pair]
    (folder / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
