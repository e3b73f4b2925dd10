"""Validates the CUDA backend on a GPU, and measures it: what `make gpu` runs.

    python tests/cuda/gpu.py [--out FILE] [--only STEP,STEP]

Steps, each in a process of its own: `environment`; `tests`, those of this folder with --device=cupy; `memcheck`,
`racecheck`, `synccheck` and `initcheck` of compute-sanitizer over tiny models, end to end; `speed`, of true sizes
with random weights. It takes less than ten minutes, writes one JSON document, and fails where any step does. Without
a GPU it says so in one sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKERS = ("memcheck", "racecheck", "synccheck", "initcheck")
STEPS = ("environment", "tests", *CHECKERS, "speed")
FOUND = 9  # the exit code of compute-sanitizer where it finds something
# At most: 575 in all.
SECONDS = {"tests": 170, "memcheck": 80, "racecheck": 35, "synccheck": 35, "initcheck": 35, "speed": 220}
# Tests of the emulator itself, and those that a GPU has no part in.
ELSEWHERE = ("test_emulator.py", "test_sanitized.py", "test_resources.py", "test_show.py", "test_plan_golden.py")
PACKAGES = ("briolette", "cupy-cuda13x", "cupy-cuda12x", "nvidia-cuda-nvrtc", "numpy", "pytest")


@dataclass
class Step:
    """How a step went: `problem` is empty where all was well."""

    seconds: float
    problem: str
    found: Any = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON document (default: docs/gpu/CARD.json)")
    parser.add_argument("--only", default=",".join(STEPS), help=f"some of the steps {', '.join(STEPS)}")
    given = parser.parse_args(arguments)
    wanted = given.only.split(",")
    unknown = [name for name in wanted if name not in STEPS]
    if unknown:
        parser.error(f"there is no step {unknown[0]}; there are {', '.join(STEPS)}")
    card = card_name()
    if card is None:
        return 1
    print(f"== {card}", flush=True)
    steps = {}
    for name in wanted:
        steps[name] = run(name)
        said = steps[name].problem or "all well"
        print(f"== {name}: {said} ({steps[name].seconds:.0f} s)", flush=True)
    out = given.out or ROOT / "docs" / "gpu" / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    write(out, card, steps)
    failed = [name for name, step in steps.items() if step.problem]
    print(f"== {out} is written. " + (f"FAILED: {', '.join(failed)}" if failed else "Everything passed."), flush=True)
    return 1 if failed else 0


def card_name() -> str | None:
    """The GPU's name; None, and one sentence on standard error, where there is none that can be used."""
    from briolette.backends.cuda.device import open_device
    from briolette.compiler.errors import BrioletteError

    try:
        return open_device().name
    except BrioletteError as problem:
        print(f"there is no GPU to validate on: {problem}", file=sys.stderr)
        return None


def write(out: Path, card: str, steps: dict[str, Step]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "card": card,
        "passed": not any(step.problem for step in steps.values()),
        "steps": {name: {"seconds": round(s.seconds, 1), "problem": s.problem or None} for name, s in steps.items()},
        **{name: step.found for name, step in steps.items() if step.found is not None},
    }
    out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def run(name: str) -> Step:
    """Runs a step; whatever happens in it is told in its result, so that the others run, too."""
    begin = time.perf_counter()
    step = RUN.get(name, checked)
    try:
        problem, found = step(name)
    except subprocess.TimeoutExpired as late:
        problem, found = f"not done within {late.timeout:.0f} s", None
    except Exception as error:
        problem, found = f"{type(error).__name__}: {error}", None
    return Step(time.perf_counter() - begin, problem, found)


Result = tuple[str, Any]


def environment(name: str) -> Result:
    """The card, its driver, the machine, and versions."""
    asked = "name,driver_version,memory.total,compute_cap,clocks.max.memory,power.limit"
    told = {"platform": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()}
    told |= {package: _version(package) for package in PACKAGES}
    told["commit"] = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    told["nvidia-smi"] = _output(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"])
    told["compute-sanitizer"] = _output(["compute-sanitizer", "--version"])
    for key, value in told.items():
        print(f"   {key}: {value}")
    return "", told


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    """What a command says in one line; None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return " ".join(run.stdout.split()) or None if run.returncode == 0 else None


def tests(name: str) -> Result:
    """The tests of this folder on the GPU; what would be skipped fails."""
    ignored = [f"--ignore={HERE / file}" for file in ELSEWHERE]
    command = [sys.executable, "-m", "pytest", str(HERE), "--device=cupy", "-p", "no:cacheprovider", *ignored]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"CUDA_TESTS": "require"}, timeout=SECONDS[name])
    return "" if run.returncode == 0 else f"pytest ended with {run.returncode}", None


def checked(tool: str) -> Result:
    """Tiny models under a tool of compute-sanitizer."""
    if shutil.which("compute-sanitizer") is None:
        return "compute-sanitizer is not there: it comes with the CUDA toolkit", None
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    run = subprocess.run(
        [*command, sys.executable, str(HERE / "gpu_tiny.py")],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS[tool],
    )  # fmt: skip
    if run.returncode == 0:
        return "", None
    said = (run.stdout + run.stderr)[-4000:]
    print(said)
    what = "it found something" if run.returncode == FOUND else f"the program ended with {run.returncode}"
    return what, {"said": said}


def speed(name: str) -> Result:
    """Speeds, by a process whose memory of the GPU is given back with it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speed.json"
        command = [sys.executable, str(HERE / "gpu_speed.py"), str(file)]
        run = subprocess.Popen(command, cwd=ROOT)
        try:
            code = run.wait(SECONDS[name])
            problem = "" if code == 0 else f"the measurement ended with {code}"
        except subprocess.TimeoutExpired:
            run.terminate()
            run.wait()
            problem = f"not done within {SECONDS[name]} s"  # what was measured until then is told all the same
        return problem, json.loads(file.read_text()) if file.exists() else None


RUN: dict[str, Callable[[str], Result]] = {"environment": environment, "tests": tests, "speed": speed}

if __name__ == "__main__":
    sys.exit(main())
