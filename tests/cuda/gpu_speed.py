"""Speeds on a GPU, of true sizes with random weights, as JSON: python tests/cuda/gpu_speed.py FILE

For each model decode and prefill, beside the copy bandwidth measured in the same run, and the time of every kernel of a
token; for one model decode with each KV codec at several depths. The file is written after each model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.bench.on_device import measure_on_device, measured_json
from briolette.engine.bench.sizes import sizes
from briolette.engine.bench.synthetic import synthetic
from briolette.engine.bench.wanted import Wanted
from briolette.engine.telling import Telling


@dataclass(frozen=True)
class Plan:
    """What is measured: models, and KV codecs of one of them at some depths. copied: see `measure_on_device`."""

    models: Sequence[str] = ("gemma4-e2b", "gemma4-12b", "gemma4-26b-a4b")
    prompts: tuple[int, ...] = (512, 2048)
    generated: int = 64
    depths: tuple[int, ...] = (0, 4096)
    of_codecs: str = "gemma4-12b"
    codecs: Sequence[str] = ("f16", "quality", "balanced", "compact")
    codec_depths: tuple[int, ...] = (4096, 32768, 131072)
    repetitions: int = 3
    chunk: int = 512
    copied: int | None = None


class Silent:
    """A progress bar that is not shown."""

    def __call__(self, done: int, wanted: int) -> None: ...
    def close(self) -> None: ...


SILENT = Telling(lambda message: nullcontext(), lambda message: Silent())


def measured(plan: Plan, out: Path) -> int:
    """Measures, and writes what there is after each model; gives the number of models that could not be measured."""
    found: dict[str, Any] = {"models": [], "codecs": [], "problems": []}
    for model in plan.models:
        wanted = Wanted(plan.prompts, (plan.generated,), plan.depths, (1,), ("exact",), ("last",), plan.repetitions)
        _try(found, "models", model, "f16", wanted, plan, profiled=True)
        out.write_text(json.dumps(found))
    for kv in plan.codecs:
        wanted = Wanted((), (plan.generated,), plan.codec_depths, (1,), ("exact",), ("last",), plan.repetitions)
        _try(found, "codecs", plan.of_codecs, kv, wanted, plan, profiled=False)
        out.write_text(json.dumps(found))
    for problem in found["problems"]:
        print(f"   {problem}", file=sys.stderr)
    return len(found["problems"])


def _try(found: dict[str, Any], kind: str, model: str, kv: str, wanted: Wanted, plan: Plan, profiled: bool) -> None:
    """One engine's figures, under `kind`; or why there are none, under `problems`. The cache is not filled before: its
    content does not change how long it takes to read, and 131072 tokens would take minutes."""
    options = {"kv": kv, "weights": "packed", "chunk": plan.chunk}
    try:
        one = measure_on_device(
            synthetic(sizes(model)), wanted, options, SILENT, profiled, filled=False, copied=plan.copied
        )
    except BrioletteError as problem:
        found["problems"].append(f"{model} with {kv}: {problem}")
        return
    found[kind].append(measured_json(one) | {"synthetic": model})
    for result in one.results:
        print(f"   {model}, KV {kv}, {result.case} at {result.case.depth}: {result.median:.1f} tok/s", flush=True)


if __name__ == "__main__":
    sys.exit(1 if measured(Plan(), Path(sys.argv[1])) else 0)
