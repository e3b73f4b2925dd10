"""Results of measurements as rows for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from briolette.backends.cpu.ceilings import Ceilings
from briolette.engine.words import many

from .host import machine, versions
from .measure import Case, Result
from .profile import Part, Spent
from .run import Measured
from .work import Work

HEAD = ["test", "depth", "threads", "tok/s", "(lowest to highest)", "read", "of ceiling", "multiplied", "of ceiling"]
PROFILE_HEAD = ["block", "kernel", "calls", "ms/token", "share", "read", "of ceiling", "multiplied", "of ceiling"]
SHARES = """\
Read: bytes of weights and KV cache that the tokens have to read, a second, and their share of what this machine can
read. Multiplied: multiply-adds of the model, and the share of the time that the processor needs for them at its best
(activations of 16 bits take two each). The ceilings were measured in this run. A share above 100% is of bytes that
caches still held, or the ceilings are too low because other work had the machine meanwhile."""


def ceiling_lines(limits: Iterable[Ceilings]) -> list[list[str]]:
    """What the machine can do, a row for each number of threads."""
    rows = [["at most", "read", "multiply-adds of bytes", "of floats"]]
    for one in limits:
        rates = (f"{one.read / 1e9:.1f} GB/s", f"{one.integers / 1e9:.0f} G/s", f"{one.floats / 1e9:.0f} G/s")
        rows.append([many(one.threads, "thread"), *rates])
    return rows


def ceilings_json(limits: Iterable[Ceilings]) -> list[dict[str, Any]]:
    return [
        {
            "threads": one.threads,
            "read_gb_s": round(one.read / 1e9, 2),
            "integer_gmac_s": round(one.integers / 1e9, 1),
            "float_gmac_s": round(one.floats / 1e9, 1),
        }
        for one in limits
    ]


def result_rows(found: Measured) -> list[list[str]]:
    """A row for each test of each engine; beside a peer, how many times as fast we are."""
    beside = dict.fromkeys((one.subject, one.kv) for one in found.results if one.subject in found.peer)
    several = len({one.subject for one in found.results}) > 1
    caches = len({one.kv for one in found.results}) > 1
    rows = [[*HEAD, *(f"beside {name} {kv}" for name, kv in beside)]]
    for one in found.results:
        what = f"{one.case}: {one.subject}" if several else str(one.case)
        what += f"{', ' if several else ': '}{one.kv} cache" if caches else ""
        spread = f"({min(one.rates):.1f} to {max(one.rates):.1f})"
        told, ratios = shares(one, found.ceilings[one.threads]), found.ratios(one)
        row = [what, f"{one.case.depth}", f"{one.threads}", f"{one.median:.1f}", spread]
        row += _rates(told) if told else [""] * 4
        rows.append(row + [f"{ratios[kv]:.2f} x" if kv in ratios else "" for _, kv in beside])
    return rows


def _rates(told: Mapping[str, float]) -> list[str]:
    read, multiplied = f"{told['read_gb_s']:.1f} GB/s", f"{told['gmac_s']:.1f} GMAC/s"
    return [read, f"{told['read_share']:.0%}", multiplied, f"{told['arithmetic_share']:.0%}"]


def shares(one: Result, limit: Ceilings) -> dict[str, float]:
    """Rates by the work that there was, and the shares of the machine's ceilings; nothing where it is not known."""
    return {} if one.work is None else rates(one.work, one.case.count / one.median, limit)


def rates(work: Work, seconds: float, limit: Ceilings) -> dict[str, float]:
    """What the work comes to in so many seconds."""
    return {
        "read_gb_s": work.bytes / seconds / 1e9,
        "read_share": work.read_seconds(limit) / seconds,
        "gmac_s": work.macs / seconds / 1e9,
        "arithmetic_share": work.arithmetic_seconds(limit) / seconds,
    }


def measured_json(found: Measured, repetitions: int, profiled: bool) -> dict[str, Any]:
    """All of a benchmark as plain values; docs/cli.md says what each is."""
    profiles = [profile_json(spent, found.ceilings[spent.threads]) for spent in found.profiles]
    return {
        "machine": machine(),
        "versions": versions() | found.peer,
        **found.about,
        "repetitions": repetitions,
        "ceilings": ceilings_json(found.ceilings.values()),
        "results": [result_json_of(one, found) for one in found.results],
        **({"profiles": profiles} if profiled else {}),
    }


def result_json_of(one: Result, measured: Measured) -> dict[str, Any]:
    """A result as plain values."""
    found: dict[str, Any] = {
        "engine": one.subject,
        "kv": one.kv,
        **case_json(one.case),
        "threads": one.threads,
        "seconds": [round(seconds, 6) for seconds in one.seconds],
        "rate": round(one.median, 3),
        "lowest": round(min(one.rates), 3),
        "highest": round(max(one.rates), 3),
    }
    if one.work is not None:
        found["bytes_per_token"] = round(one.work.bytes / one.case.count)
        found["macs_per_token"] = round(one.work.macs / one.case.count)
    told = shares(one, measured.ceilings[one.threads])
    found |= {name: float(f"{value:.4g}") for name, value in told.items()}  # a tiny model's are tiny, not nothing
    ratios = {kv: round(value, 4) for kv, value in measured.ratios(one).items()}
    return found | ({"ratios": ratios} if ratios else {})


LEAST_SHARE = 0.004  # of the kernels' time: what takes less is told as one


def profile_rows(spent: Spent, limit: Ceilings) -> list[list[str]]:
    """Where the time of a case went, the longest first."""
    least = LEAST_SHARE * sum(part.mean for part in spent.parts)
    shown = [part for part in spent.parts if part.mean >= least]
    rest = spent.parts[len(shown) :]
    rows = [PROFILE_HEAD, *(_part_row(part, spent, limit) for part in shown)]
    few = (
        [(f"{len(rest)} kinds more", sum(part.calls for part in rest), sum(part.mean for part in rest))] if rest else []
    )
    for what, calls, seconds in (*few, ("waiting at barriers", "", spent.waiting), ("Python", "", spent.outside)):
        rows.append(["", what, f"{calls}", *_times(seconds, spent), "", "", "", ""])
    return [*rows, ["", "in all", "", *_times(spent.seconds, spent), "", "", "", ""]]


def _part_row(part: Part, spent: Spent, limit: Ceilings) -> list[str]:
    told = _rates(rates(part.work, part.slowest, limit))
    if not part.work.bytes:  # values between kernels, which are in caches, are not counted
        told = ["", "", *told[2:]] if part.work.macs > part.slowest * limit.floats / 100 else [""] * 4
    return [part.block, part.kernel, f"{part.calls}", *_times(part.mean, spent), *told]


def _times(seconds: float, spent: Spent) -> list[str]:
    return [f"{1e3 * seconds / spent.case.count:.3f}", f"{seconds / spent.seconds:.1%}"]


def profile_title(spent: Spent) -> str:
    """What a profile is of, in a line."""
    each = f"{1e3 * spent.seconds / spent.case.count:.2f} ms a token"
    where = f"depth {spent.case.depth}, {many(spent.threads, 'thread')}, {spent.kv} cache"
    return f"{spent.case} at {where}: {each}, clocks included"


def profile_json(spent: Spent, limit: Ceilings) -> dict[str, Any]:
    """A profile as plain values; docs/cli.md says what each is."""

    def times(seconds: float) -> dict[str, float]:
        share = seconds / spent.seconds
        return {"ms_per_token": round(1e3 * seconds / spent.case.count, 6), "share": round(share, 6)}

    parts = [
        {"block": part.block, "kernel": part.kernel, "calls": part.calls, "lines": sorted(part.lines)}
        | times(part.mean)
        | {"bytes_per_token": round(part.work.bytes / spent.case.count)}
        | {name: round(value, 4) for name, value in rates(part.work, part.slowest, limit).items()}
        for part in spent.parts
    ]
    return {
        "engine": spent.engine,
        "kv": spent.kv,
        **case_json(spent.case),
        "threads": spent.threads,
        **times(spent.seconds),
        "parts": parts,
        "waiting": times(spent.waiting),
        "python": times(spent.outside),
    }


def case_json(case: Case) -> dict[str, Any]:
    return {
        "test": case.kind,
        "tokens": case.tokens,
        "sequences": case.sequences,
        "logits": case.logits,
        "depth": case.depth,
    }
