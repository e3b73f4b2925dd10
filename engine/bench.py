"""How fast a model runs here: prompt and generation speed, with a peer measured in turn with ours."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError

from .model import Model


@dataclass(frozen=True)
class Speed:
    """One engine's runs: tokens a second for each, prompt and generation apart."""

    name: str
    prefill: list[float]
    decode: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.prefill), statistics.median(self.decode)


@dataclass(frozen=True)
class Report:
    """A benchmark: what ran on what, and each engine's speeds."""

    model: str
    threads: int
    prompt: int
    generated: int
    machine: str
    speeds: list[Speed]

    def as_json(self) -> str:
        rows = [asdict(s) | {"prefill_median": s.medians[0], "decode_median": s.medians[1]} for s in self.speeds]
        return json.dumps(asdict(self) | {"speeds": rows}, indent=2)

    def table(self) -> str:
        """A Markdown table of medians and ranges, and ours over the peer's."""
        lines = [
            f"| {self.model}, {self.threads} threads | prompt of {self.prompt}, tok/s | generation of {self.generated}, tok/s |",
            "|---|---|---|",
        ]
        for speed in self.speeds:
            cells = (
                f"{statistics.median(runs):.1f} ({min(runs):.1f} to {max(runs):.1f})" for runs in (speed.prefill, speed.decode)
            )
            lines.append(f"| {speed.name} | {' | '.join(cells)} |")
        if len(self.speeds) == 2:
            (p, d), (peer_p, peer_d) = (s.medians for s in self.speeds)
            lines.append(f"| ratio of medians | {p / peer_p:.2f} | {d / peer_d:.2f} |")
        return "\n".join(lines)


def bench(
    model: Model,
    prompt: int = 512,
    generated: int = 64,
    runs: int = 5,
    peer: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, all: None,
) -> Report:
    """Measures `runs` times, ours and the peer's alternately, after one run of each that does not count.

    peer: a Python with llama-cpp-python; the same file is given to it with as many threads.
    Raises BrioletteError where the peer does not start.
    """
    if prompt + generated > model.options.context:
        raise BrioletteError(f"a context of {model.options.context} has no room for {prompt} + {generated} tokens")
    ours = Speed("briolette", [], [])
    theirs = Speed("llama.cpp", [], [])
    with _peer(peer, model) as measure_peer:
        for run in range(runs + 1):
            for speed, measure in ((ours, lambda: _measure(model, prompt, generated)), (theirs, measure_peer)):
                seconds = measure() if speed is ours else measure(prompt, generated)  # type: ignore[call-arg]
                if run and seconds:
                    speed.prefill.append(prompt / seconds[0])
                    speed.decode.append(generated / seconds[1])
            progress(run + 1, runs + 1)
    speeds = [ours, theirs] if theirs.prefill else [ours]
    return Report(model.file.path.name, model.options.threads, prompt, generated, machine(), speeds)


def machine() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {platform.system()}, Python {platform.python_version()}"


def _measure(model: Model, prompt: int, generated: int) -> tuple[float, float]:
    """Seconds for a prompt in an empty cache, and for single tokens after it."""
    start = time.perf_counter()
    model.engine.step([3 + i % 1000 for i in range(prompt)], 0)
    middle = time.perf_counter()
    for i in range(generated):
        model.engine.step([5 + i], prompt + i)
    return middle - start, time.perf_counter() - middle


@contextmanager
def _peer(python: Path | None, model: Model) -> Iterator[Callable[[int, int], tuple[float, float] | None]]:
    """A function that has llama.cpp run the same; one that gives None where no peer is wanted."""
    if python is None:
        yield lambda prompt, generated: None
        return
    script = Path(__file__).parents[1] / "tests" / "peers" / "llama_cpp_speed.py"
    if not script.exists():
        raise BrioletteError("the peer's script is part of the source tree: run the benchmark from a clone")
    command = [str(python), str(script), str(model.file.path), "--threads", str(model.options.threads)]
    command += ["--context", str(min(model.options.context, 8192))]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise BrioletteError(f"cannot start the peer's Python {python}: {error.strerror}") from None

    def ask(request: dict[str, Any] | None) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        if request is not None:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise BrioletteError("llama.cpp ended early; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(prompt: int, generated: int) -> tuple[float, float]:
        answer = ask({"prefill": prompt, "decode": generated})
        return answer["prefill_s"], answer["decode_s"]

    try:
        ask(None)
        yield measure
    finally:
        process.kill()
        process.wait()
