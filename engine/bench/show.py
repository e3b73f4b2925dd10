"""Results of measurements as rows for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from briolette.backends.cpu.ceilings import Ceilings

from .measure import Result

HEAD = ["test", "depth", "threads", "tok/s", "(lowest to highest)", "read", "of ceiling", "multiplied", "of ceiling"]
SHARES = """\
Read: bytes of weights and KV cache that the tokens have to read, a second, and their share of what this machine can
read. Multiplied: multiply-adds of the model, and the share of the time that the processor needs for them at its best
(activations of 16 bits take two each). The ceilings were measured in this run."""


def ceiling_lines(limits: Sequence[Ceilings]) -> list[list[str]]:
    """What the machine can do, a row for each number of threads."""
    rows = [["at most", "read", "multiply-adds of bytes", "of floats"]]
    for one in limits:
        rates = (f"{one.read / 1e9:.1f} GB/s", f"{one.integers / 1e9:.0f} G/s", f"{one.floats / 1e9:.0f} G/s")
        rows.append([f"{one.threads} thread{'s' * (one.threads != 1)}", *rates])
    return rows


def ceilings_json(limits: Sequence[Ceilings]) -> list[dict[str, Any]]:
    return [
        {
            "threads": one.threads,
            "read_gb_s": round(one.read / 1e9, 2),
            "integer_gmac_s": round(one.integers / 1e9, 1),
            "float_gmac_s": round(one.floats / 1e9, 1),
        }
        for one in limits
    ]


def result_rows(results: Sequence[Result], limits: Mapping[int, Ceilings]) -> list[list[str]]:
    """A row for each case of each engine."""
    head = [
        "test",
        "depth",
        "threads",
        "tok/s",
        "(lowest to highest)",
        "read",
        "of ceiling",
        "multiplied",
        "of ceiling",
    ]
    rows = [head]
    several = len({one.subject for one in results}) > 1
    for one in results:
        what = f"{one.case}: {one.subject}" if several else str(one.case)
        spread = f"({min(one.rates):.1f} to {max(one.rates):.1f})"
        row = [what, f"{one.case.depth}", f"{one.threads}", f"{one.median:.1f}", spread]
        told = shares(one, limits[one.threads])
        if told:
            row += [f"{told['read_gb_s']:.1f} GB/s", f"{told['read_share']:.0%}"]
            row += [f"{told['gmac_s']:.1f} GMAC/s", f"{told['arithmetic_share']:.0%}"]
        rows.append(row + [""] * (len(HEAD) - len(row)))
    return rows


def shares(one: Result, limit: Ceilings) -> dict[str, float]:
    """Rates by the work that there was, and the shares of the machine's ceilings; nothing where it is not known."""
    if one.work is None:
        return {}
    seconds = one.case.tokens / one.median
    return {
        "read_gb_s": one.work.bytes / seconds / 1e9,
        "read_share": one.work.read_seconds(limit) / seconds,
        "gmac_s": one.work.macs / seconds / 1e9,
        "arithmetic_share": one.work.arithmetic_seconds(limit) / seconds,
    }


def result_json_of(one: Result, limit: Ceilings) -> dict[str, Any]:
    """A result as plain values; docs/cli.md says what each is."""
    found: dict[str, Any] = {
        "engine": one.subject,
        "test": one.case.kind,
        "tokens": one.case.tokens,
        "logits": one.case.logits,
        "depth": one.case.depth,
        "threads": one.threads,
        "seconds": [round(seconds, 6) for seconds in one.seconds],
        "rate": round(one.median, 3),
        "lowest": round(min(one.rates), 3),
        "highest": round(max(one.rates), 3),
    }
    if one.work is not None:
        found["bytes_per_token"] = round(one.work.bytes / one.case.tokens)
        found["macs_per_token"] = round(one.work.macs / one.case.tokens)
    return found | {name: round(value, 4) for name, value in shares(one, limit).items()}
