"""`briolette eval needle`: words that are found again in long texts, for several caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.evaluation.needles import Document, documents
from briolette.engine.evaluation.retrieval import Answer, Found, Tally, retrieve, tally
from briolette.engine.evaluation.run import Setting
from briolette.engine.gguf import open_gguf
from briolette.engine.tokenizer import Tokenizer

from .telling import tell_of_prefill
from .terminal import TELLING, busy, note, result, result_json, table
from .texts import text_of


def needle(
    path: str,
    text: str,
    lengths: Sequence[str],
    depths: Sequence[str],
    trials: int,
    settings: Mapping[str, Any],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Prints a row for every cache and length and the hits by depth, or JSON."""
    counts = [int(part) for part in _numbers(lengths, "--lengths", "1024,4096")]
    places = [float(part) for part in _numbers(depths, "--depths", "0,50,100", fractions=True)]
    if any(place > 100 for place in places):
        raise BrioletteError("--depths are parts of a text in per cent, from 0 to 100")
    file, content = open_gguf(path), text_of(text)
    with busy("hiding words in the text"):
        asked = documents(content, Tokenizer.from_gguf(file), counts, [place / 100 for place in places], trials)
    kinds = dict.fromkeys(settings["kv"] or [None])
    ways = [Setting(kv, settings["weights"], settings["prefill"]) for kv in kinds]
    found = retrieve(file, asked, ways, options, TELLING)
    rows = [(one, length, _of(asked, one, found[0], length)) for one in found for length in counts]
    if as_json:
        told = [_row(one, length, tallied, _by_depth(asked, one, found[0], length)) for one, length, tallied in rows]
        about = {"lengths": counts, "depths": places, "trials": trials}
        result_json({"file": str(file.path), **about, **told[0], "rows": told})
        return
    head = ["KV cache", "bits", "tokens", "found", "of", "share", "95 % (Wilson)", "-log p", "±", "mean p"]
    if len(found) > 1:
        head += ["lost", "gained", "-log p moved", "±"]
    body = [[*_cells(one, length, tallied), *_beside(tallied)][: len(head)] for one, length, tallied in rows]
    result(table([head, *body], "lrrrrrrrrrrrrr"))
    result("")
    head = ["found at depth", "tokens", *(f"{place:g} %" for place in places)]
    body = [
        [one.loaded.kv or "", f"{length}", *(f"{each.hits}/{each.questions}" for each in by.values())]
        for one, length, _ in rows
        for by in [_by_depth(asked, one, found[0], length)]
    ]
    result(table([head, *body], "lr" + "r" * len(places)))
    note(
        f"\n{trials} texts of each length, each with {len(places)} words hidden in it; -log p is of the whole word, in "
        "nats"
    )
    if len(found) > 1:
        note(f"lost, gained and moved: beside the {found[0].loaded.kv} cache, question by question")
    tell_of_prefill(settings["prefill"], found[0].loaded.weights or "")


def _numbers(texts: Sequence[str], option: str, such: str, fractions: bool = False) -> list[str]:
    """Numbers of a list option, each once, the smallest first. Raises BrioletteError for what is none."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        digits = part.replace(".", "", 1) if fractions else part
        if not (digits.isascii() and digits.isdecimal() and len(part) <= 9):
            raise BrioletteError(f"{option} takes numbers with commas between them, such as {such}, not {part!r}")
    return sorted(dict.fromkeys(parts), key=float)


def _of(asked: Sequence[Document], one: Found, first: Found, length: int, depth: float | None = None) -> Tally:
    """Answers to the questions of texts of a length, at a depth or at all, beside those of the first cache."""

    def chosen(found: Found) -> list[Answer]:
        return [
            answer
            for document, answers in zip(asked, found.answers, strict=True)
            for question, answer in zip(document.questions, answers, strict=True)
            if document.length == length and depth in (None, question.depth)
        ]

    return tally(chosen(one), chosen(first))


def _by_depth(asked: Sequence[Document], one: Found, first: Found, length: int) -> dict[float, Tally]:
    depths = dict.fromkeys(question.depth for question in asked[0].questions)
    return {depth: _of(asked, one, first, length, depth) for depth in depths}


# --- for people ----------------------------------------------------------------------------------------


def _cells(one: Found, length: int, of: Tally) -> list[str]:
    low, high = of.interval
    return [
        one.loaded.kv or "",
        f"{one.bits:.2f}",
        f"{length}",
        f"{of.hits}",
        f"{of.questions}",
        f"{100 * of.share:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
        f"{of.surprise[0]:.3f}",
        f"{of.surprise[1]:.3f}",
        f"{of.probability:.3f}",
    ]


def _beside(of: Tally) -> list[str]:
    return [f"{of.lost}", f"{of.gained}", f"{of.change[0]:+.4f}", f"{of.change[1]:.4f}"]


# --- for programs --------------------------------------------------------------------------------------


def _row(one: Found, length: int, of: Tally, by_depth: Mapping[float, Tally]) -> dict[str, Any]:
    about = {"kv": one.loaded.kv, "bits": one.bits, "weights": one.loaded.weights, "prefill": one.loaded.prefill}
    depths = [{"depth": 100 * depth} | _figures(each) for depth, each in by_depth.items()]
    return about | {"length": length} | _figures(of) | {"by_depth": depths}


def _figures(of: Tally) -> dict[str, Any]:
    return {
        "questions": of.questions,
        "hits": of.hits,
        "share": of.share,
        "share_interval": of.interval,
        "nll": of.surprise[0],
        "nll_error": of.surprise[1],
        "probability": of.probability,
        "lost": of.lost,
        "gained": of.gained,
        "nll_change": of.change[0],
        "nll_change_error": of.change[1],
    }
