"""A model on a device of its own as a subject of measurements, and what the device could do at most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from briolette.backends.cuda.compilation import rows_of
from briolette.backends.cuda.engine import CudaEngine
from briolette.backends.cuda.measure import Timed, copy_bandwidth, kernel_times
from briolette.backends.cuda.traffic import MERGE, Use
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Node
from briolette.engine.gguf import GgufFile
from briolette.engine.model import Model, load
from briolette.engine.telling import Telling

from .measure import Case, Result, measure
from .ours import seconds_of, steps_of, tokens
from .profile import kernel_name
from .show import case_json
from .wanted import Wanted
from .work import Work, Works


class OnDevice:
    """A loaded model. filled: whether positions before a case are computed first, or just taken as they are: what the
    cache holds does not change how long it takes to read."""

    name, threads = "briolette", 1

    def __init__(self, model: Model, filled: bool = True):
        self.model, self.filled, self.kv = model, filled, model.options.cache
        self.engine = cast(CudaEngine, model.engine)
        self.works: dict[str, Works] = {}

    def fill(self, depth: int, sequences: int = 1) -> None:
        """See `measure.Subject`."""
        if depth and self.filled:
            for sequence in range(sequences):
                self.engine.step(tokens(depth, 0, self.ids), 0, sequence=sequence)

    def run(self, case: Case) -> float:
        """See `measure.Subject`."""
        return seconds_of(self.engine, case, self.ids)

    def work(self, case: Case) -> Work:
        """See `measure.Subject`."""
        program, steps = steps_of(case, lambda program: rows_of(program, self.model.options), lambda count: "batch")
        if program not in self.works:
            self.works[program] = Works(self.engine.compilation.plan(program, self.model.options).module)
        return sum((self.works[program].of_step(step) for step in steps), Work())

    @property
    def ids(self) -> int:
        """How many tokens the model knows."""
        return self.engine.compilation.token_ids


@dataclass
class DeviceMeasured:
    """What a benchmark found: the device's name, its copy bandwidth in bytes a second, results of cases, and by depth
    the kernels of a decode step."""

    device: str
    copy: float
    model: dict[str, Any]
    options: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    kernels: dict[int, list[Timed]] = field(default_factory=dict)


@contextmanager
def loaded(source: GgufFile, filled: bool = True, **options: Any) -> Iterator[OnDevice]:
    """A model on the device while it is measured."""
    model = load(source, backend="cuda", **options)
    try:
        model.engine.prepare()
        yield OnDevice(model, filled)
    finally:
        model.engine.close()


def measure_on_device(
    source: GgufFile,
    wanted: Wanted,
    options: dict[str, Any],
    telling: Telling,
    profiled: bool = False,
    filled: bool = True,
    copied: int | None = None,
) -> DeviceMeasured:
    """Measures everything that is wanted. options: of `load`. copied: bytes that the ceiling is measured with, where
    not as many as usual. Raises BrioletteError where there is no device, or no room on it."""
    prefill, *others = wanted.prefill
    if others:
        raise BrioletteError("on a device, --prefill takes one kind at a time")
    with ExitStack() as stack:
        with telling.busy("loading the model onto the device"):
            fixed = {"context": wanted.context, "prefill": prefill, "sequences": wanted.most_sequences}
            subject = stack.enter_context(loaded(source, filled, **fixed, **options))
        device, given = subject.engine.device, subject.model.options
        found = DeviceMeasured(
            device.name,
            copy_bandwidth(device) if copied is None else copy_bandwidth(device, copied, 4),
            {"name": subject.model.header.metadata.get("general.name"), "bytes": source.size},
            {"kv": given.cache, "weights": given.weights, "chunk": given.chunk, "prefill": prefill},
        )
        bar = stack.enter_context(closing(telling.bar("measuring")))
        found.results = measure([(subject, wanted.cases(prefill))], wanted.repetitions, bar)
        if profiled:
            found.kernels = {depth: kernel_times(subject.engine, depth) for depth in wanted.depths}
    return found


def described(use: Use) -> str:
    """What a launch does."""
    names = ("parts together" if family == MERGE else kernel_name(item) for item, family in _parts(use))
    return "; ".join(_counted(names))


def families(use: Use) -> str:
    """The families of the kernels that are joined in a launch."""
    return " + ".join(dict.fromkeys(use.families))


def _parts(use: Use) -> Iterator[tuple[Node, str]]:
    return zip(use.nodes, use.families, strict=True)


def _counted(names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        yield name if count == 1 else f"{count} x {name}"


def result_rows(found: DeviceMeasured) -> list[list[str]]:
    """A row for each case."""
    rows = [["test", "depth", "tok/s", "(lowest to highest)", "read", "of copy"]]
    for one in found.results:
        spread = f"({min(one.rates):.1f} to {max(one.rates):.1f})"
        read = _read(one)
        shares = [f"{read / 1e9:.1f} GB/s", f"{read / found.copy:.0%}"]
        rows.append([str(one.case), f"{one.case.depth}", f"{one.median:.1f}", spread, *shares])
    return rows


def _read(one: Result) -> float:
    """Bytes of weights and cache a second."""
    assert one.work is not None
    return one.work.bytes * one.median / one.case.count


def kernel_rows(found: DeviceMeasured, depth: int) -> list[list[str]]:
    """A row for each kernel of a decode step, the longest first."""
    rows = [["kernel", "what it does", "calls", "us", "MB", "GB/s", "of copy"]]
    for one in found.kernels[depth]:
        rate = one.bytes / one.seconds
        told = [f"{1e6 * one.seconds:.1f}", f"{one.bytes / 1e6:.3f}", f"{rate / 1e9:.1f}", f"{rate / found.copy:.0%}"]
        rows.append([families(one.use), described(one.use), str(one.calls), *told])
    return rows


def measured_json(found: DeviceMeasured) -> dict[str, Any]:
    """All of it as plain values; docs/cli.md says what each is."""
    results = [
        {
            **case_json(one.case),
            "seconds": [round(seconds, 6) for seconds in one.seconds],
            "rate": round(one.median, 3),
            "lowest": round(min(one.rates), 3),
            "highest": round(max(one.rates), 3),
            "read_gb_s": round(_read(one) / 1e9, 3),
            "copy_share": round(_read(one) / found.copy, 4),
        }
        for one in found.results
    ]
    kernels = [
        {
            "depth": depth,
            "families": list(one.use.families),
            "what": described(one.use),
            "calls": one.calls,
            "bytes": one.bytes,
            "seconds": one.seconds,
            "gb_s": round(one.bytes / one.seconds / 1e9, 3),
            "copy_share": round(one.bytes / one.seconds / found.copy, 4),
        }
        for depth, timed in found.kernels.items()
        for one in timed
    ]
    return {
        "device": found.device,
        "copy_gb_s": round(found.copy / 1e9, 2),
        "model": found.model,
        "options": found.options,
        "results": results,
        "kernels": kernels,
    }
