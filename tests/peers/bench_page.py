"""The page that `make bench` writes, its pictures, and the figures behind it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from briolette.engine.bench.chart import Panel, Point, figure
from briolette.engine.bench.host import machine, versions
from briolette.engine.bench.measure import Result
from briolette.engine.bench.run import Measured
from briolette.engine.bench.show import measured_json, shares
from briolette.engine.words import many

OURS = "briolette"  # with exact prefill, whose shares are told


@dataclass
class Page:
    """What was measured, by models; of those of some layers by these, too. Parts may be missing."""

    runs: int
    prompt: int
    generate: int
    models: dict[str, Measured] = field(default_factory=dict)
    sequences: dict[str, Measured] = field(default_factory=dict)
    layers: dict[str, dict[int, Measured]] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)

    def every(self) -> Iterator[Measured]:
        """All measurements."""
        yield from self.models.values()
        yield from self.sequences.values()
        for found in self.layers.values():
            yield from found.values()


def write(page: Page, folder: Path) -> str:
    """Writes all that is there into a folder; gives the page's text."""
    today = datetime.date.today().isoformat()
    peers = next((found.peer for found in page.every() if found.peer), {})
    told = ", ".join(f"{name} {number}" for name, number in (versions() | peers).items())
    built = " (as llama-cpp-python, built for this processor)" if peers else ""
    lines = [
        "# Speed",
        "",
        f"Made by `make bench` on {today}: {machine()}; {told}{built}.",
        "",
        f"Tokens a second, medians of {many(page.runs, 'run')} (lowest to highest), the engines in turns. Prefill is "
        f"a prompt of {page.prompt} tokens, with the last one's logits unless all are asked for; decode is "
        f"{page.generate} tokens one by one; before each, the cache holds as many tokens as `depth` says. The columns "
        "`read` and `multiplied` are shares, of briolette with exact prefill, of what this machine can read and "
        "multiply at most, measured before and after; [cli.md](cli.md) says how. More than 100 % says that other work "
        "had the machine meanwhile. Behind each of our engines stands the peer as it was in turns with that one, and "
        "how many `times` as fast ours is.",
        "",
    ]
    pictures: dict[str, list[Panel]] = {}
    for name, found in page.models.items():
        pictures[f"benchmarks-{name}.svg"] = _by_depth_and_threads(found)
        lines += _model(name, found, f"benchmarks-{name}.svg")
    for name, found in page.sequences.items():
        pictures["benchmarks-sequences.svg"] = _by_sequences(found)
        lines += _sequences(name, found, page, "benchmarks-sequences.svg")
    for name, sizes in page.layers.items():
        if sizes:
            pictures["benchmarks-layers.svg"] = _by_layers(sizes)
            lines += _layers(name, sizes, "benchmarks-layers.svg")
    if page.start:
        lines += _start(page.start)
    folder.mkdir(exist_ok=True)
    for name, panels in pictures.items():
        (folder / name).write_text(figure(panels), encoding="utf-8")
    text = "\n".join(lines)
    (folder / "benchmarks.md").write_text(text, encoding="utf-8")
    (folder / "benchmarks.json").write_text(json.dumps(_plain(page, today), indent=1) + "\n")
    return text


def _plain(page: Page, today: str) -> dict[str, Any]:
    def told(found: Measured) -> dict[str, Any]:
        """Without where the file lies on this machine."""
        one = measured_json(found, page.runs, False)
        file = one["model"]["file"]
        return one | {"model": one["model"] | {"file": file and Path(file).name}}

    return {
        "machine": machine(),
        "date": today,
        "start": page.start,
        "models": {name: told(found) for name, found in page.models.items()},
        "sequences": {name: told(found) for name, found in page.sequences.items()},
        "layers": {
            name: {layers: told(found) for layers, found in sizes.items()} for name, sizes in page.layers.items()
        },
    }


# --- tables -------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    return [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1), *(f"| {' | '.join(row)} |" for row in rows)]


def _cell(one: Result, by: float = 1) -> str:
    return f"{one.median / by:.1f} ({min(one.rates) / by:.1f} to {max(one.rates) / by:.1f})"


def _ours(found: Measured) -> list[str]:
    """Our engines."""
    return list(dict.fromkeys(one.subject for one in found.results if one.subject not in found.peer))


def _figures(found: Measured, these: Sequence[Result]) -> list[str]:
    """One case's columns: the speed of each of our engines, that of a peer in the same turns, and their ratio; then
    shares of the ceilings."""
    cells = []
    for engine in _ours(found):
        one = next((one for one in these if one.subject == engine), None)
        if one is None:  # it would be as the first engine
            cells += [""] * (len(found.peer) + 2 if found.peer else 1)
            continue
        beside = [next(r for r in these if (r.subject, r.turn) == (peer, one.turn)) for peer in found.peer]
        cells += [_cell(one), *map(_cell, beside), *(f"**{ratio:.2f}**" for ratio in found.ratios(one).values())]
    ours = next(one for one in these if one.subject == OURS)
    told = shares(ours, found.ceilings[ours.threads])
    return [*cells, f"{told['read_share']:.0%}", f"{told['arithmetic_share']:.0%}"]


def _heads(found: Measured) -> list[str]:
    beside = [*found.peer, "times"] if found.peer else []
    return [*(head for engine in _ours(found) for head in (engine, *beside)), "read", "multiplied"]


def _at_most(found: Measured) -> list[str]:
    limits = "; ".join(
        f"{many(n, 'thread')} {c.read / 1e9:.1f} GB/s and {c.integers / 1e9:.0f} GMAC/s of bytes"
        for n, c in sorted(found.ceilings.items())
    )
    return ["", f"At most here: {limits}.", ""]


def _model(name: str, found: Measured, picture: str) -> list[str]:
    """A model's table, a row for each case with all engines, and its picture."""
    cases = dict.fromkeys((one.case, one.threads) for one in found.results)
    rows = []
    for case, threads in sorted(cases, key=lambda c: (c[0].kind != "prefill", c[0].logits == "all", c[0].depth, c[1])):
        these = [one for one in found.results if (one.case, one.threads) == (case, threads)]
        rows.append([str(case), f"{case.depth:,}", f"{threads}", *_figures(found, these)])
    table = _table(["test", "depth", "threads", *_heads(found)], rows)
    return [f"## {name}", "", *table, *_at_most(found), f"![{name}, by depth and by threads]({picture})", ""]


def _sequences(name: str, found: Measured, page: Page, picture: str) -> list[str]:
    """A row for each number of sequences."""
    threads = many(max(found.ceilings), "thread")
    rows = [
        [f"{count}", *_figures(found, [one for one in found.results if one.case.sequences == count])]
        for count in sorted({one.case.sequences for one in found.results})
    ]
    return [
        "## Several sequences at once",
        "",
        f"Of {name} with {threads}: decode of {page.generate} tokens of each sequence, a step for all of them, in "
        "empty caches. Speeds are of all sequences together.",
        "",
        *_table(["sequences", *_heads(found)], rows),
        *_at_most(found),
        f"![{name}, by sequences]({picture})",
        "",
    ]


def _layers(name: str, sizes: Mapping[int, Measured], picture: str) -> list[str]:
    """A row for each number of layers."""
    first = next(iter(sizes.values()))
    rows, kinds, threads = [], [str(one.case) for one in first.results], many(max(first.ceilings), "thread")
    for layers, found in sorted(sizes.items()):
        row = [f"{layers}"]
        for one in found.results:
            assert one.work is not None
            told = shares(one, found.ceilings[one.threads])
            moved, part = (
                (f"{one.work.bytes / one.case.count / 1e6:.0f} MB", told["read_share"])
                if one.case.kind == "decode"
                else (f"{one.work.macs / one.case.count / 1e6:.0f} MMAC", told["arithmetic_share"])
            )
            row += [_cell(one), moved, f"{part:.0%}"]
        rows.append(row)
    heads = [head for kind in kinds for head in (kind, "a token", "of ceiling")]
    return [
        "## By the number of layers",
        "",
        f"Of {name} with random weights in the formats of a Q4_K_M file, with {threads} and an empty cache. Layers of "
        "each kind are left out in proportion, and the head stays whole. `a token` is what a token has to multiply in "
        "a prefill, and to read in a decode; `of ceiling` is the rate as a share of this machine's ceiling.",
        "",
        *_table(["layers", *heads], rows),
        "",
        f"![{name}, by layers]({picture})",
        "",
    ]


def _start(start: Mapping[str, Any]) -> list[str]:
    rows = [[name, f"{row['seconds']:.2f}", f"{row['peak_mb']:.0f}"] for name, row in start["engines"].items()]
    return [
        "## From process start to the first token",
        "",
        f"Of {start['model']} ({start['file_mb']:.0f} MB), with a context of 4096; the mapped file is part of the "
        "memory.",
        "",
        *_table(["engine", "seconds", "peak memory, MB"], rows),
        "",
    ]


# --- pictures -----------------------------------------------------------------------------------------


def _panel(title: str, label: str, points: Iterable[tuple[int, Result]], each: bool = False) -> Panel:
    """Speeds of each engine by x; of each sequence, or of all together."""
    lines: dict[str, list[Point]] = {}
    for x, one in points:
        by = one.case.sequences if each else 1
        point = Point(x, one.median / by, min(one.rates) / by, max(one.rates) / by)
        lines.setdefault(one.subject, []).append(point)
    return Panel(f"{title}: tok/s", label, lines)


def _by_depth_and_threads(found: Measured) -> list[Panel]:
    """Prefill and decode by depth, with all threads, and by threads at the least depth; a peer in the first turns."""
    most, least, panels = max(found.ceilings), min(one.case.depth for one in found.results), []
    results = [one for one in found.results if one.subject not in found.peer or one.turn == 0]
    empty = "empty cache" if least == 0 else f"depth {least:,}"
    for kind in ("prefill", "decode"):
        these = [one for one in results if one.case.kind == kind and one.case.logits == "last"]
        deep = [(one.case.depth, one) for one in these if one.threads == most]
        wide = [(one.threads, one) for one in these if one.case.depth == least]
        panels.append(_panel(f"{kind}, {many(most, 'thread')}", "tokens in the cache", deep))
        panels.append(_panel(f"{kind}, {empty}", "threads", wide))
    return panels


def _by_sequences(found: Measured) -> list[Panel]:
    """Of all sequences together, and of each."""
    points = [(one.case.sequences, one) for one in found.results]
    return [
        _panel("decode, all sequences together", "sequences", points),
        _panel("decode, each sequence", "sequences", points, each=True),
    ]


def _by_layers(sizes: Mapping[int, Measured]) -> list[Panel]:
    """Prefill and decode."""
    points = [(layers, one) for layers, found in sizes.items() for one in found.results]
    return [
        _panel(f"{kind}, empty cache", "layers", [(layers, one) for layers, one in points if one.case.kind == kind])
        for kind in ("prefill", "decode")
    ]
