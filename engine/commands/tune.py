"""`briolette kv-tune`: a policy for the KV cache of a model, chosen by measurements under a budget of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.available import parsed_size
from briolette.engine.evaluation.windows import windows
from briolette.engine.gguf import open_gguf
from briolette.engine.tokenizer import Tokenizer
from briolette.engine.tuning.chart import page, svg
from briolette.engine.tuning.costs import CODECS
from briolette.engine.tuning.reading import SCORED
from briolette.engine.tuning.run import Asked, Row, Tuned, tune
from briolette.engine.words import many, size

from .files import page_target, write_whole
from .terminal import TELLING, busy, note, result, result_json, table
from .texts import text_of

PLOTS = (".html", ".svg")


def kv_tune(
    path: str,
    text: str,
    memory: str,
    context: int | None,
    plot: str | None,
    bits: list[str],
    points: int,
    chunks: int,
    window: int,
    near: tuple[int, int],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Prints the frontier and the policy for the budget, or JSON; writes a plot where one is wanted."""
    budget, codecs, target = parsed_size(memory), _codecs(bits), _plot(plot)
    file, content = open_gguf(path), text_of(text)
    with busy("tokenising the text"):
        cut = windows(content, Tokenizer.from_gguf(file), window, 2 * chunks)
    asked = Asked(budget, codecs, points, *near, cut, min(chunks, len(cut)))
    tuned = tune(file, asked, context, options, TELLING)
    cells = [
        ["policy", "bytes", "bits", "of f16", "predicted KLD", "mean KLD", "±", "same top"],
        *(_cells(row, tuned) for row in tuned.rows),
    ]
    if target is not None:
        title = f"KV cache of {Path(path).stem} at {tuned.context:,} tokens"
        write_whole(target, svg(tuned) if target.suffix == ".svg" else page(tuned, title, cells))
    if as_json:
        result_json(_document(path, asked, tuned))
    else:
        result(table([[*row[1:], row[0]] for row in cells], "rrrrrrr"))
        result(f"\n--kv '{tuned.chosen.policy}'")
    held = "other windows" if tuned.apart else "the same windows, for the text has no more"
    note(
        f"\nsensitivities from {many(asked.chunks, 'window')} of {cut.size} tokens, the table from {held}; the last "
        f"{min(SCORED, cut.size - 1 - cut.first)} predictions of each count, beside an f32 cache"
    )
    if target is not None:
        note(f"the plot is {target}")


def _codecs(bits: list[str]) -> tuple[str, ...]:
    """Codecs of `--bits`. Raises BrioletteError where there is none of so many."""
    wanted = [f"tq{part.strip()}" for text in bits for part in text.split(",")]
    wrong = next((name for name in wanted if name not in CODECS), None)
    if wrong is not None:
        known = ", ".join(name.removeprefix("tq") for name in CODECS)
        raise BrioletteError(f"--bits takes some of {known} with commas between them, not {wrong.removeprefix('tq')!r}")
    return tuple(dict.fromkeys(wanted))


def _plot(name: str | None) -> Path | None:
    """Where the plot goes. Raises BrioletteError before anything is measured."""
    if name is None:
        return None
    target = page_target(name)
    if target is None or target.suffix not in PLOTS:
        raise BrioletteError(
            f"--plot writes .html or .svg, not {name}: both need nothing but a browser, which can print or save them "
            "as other pictures"
        )
    return target


# --- for people ----------------------------------------------------------------------------------------


def _cells(row: Row, tuned: Tuned) -> list[str]:
    found = row.found
    return [
        row.name or row.policy,
        size(row.bytes),
        f"{16 * row.bytes / tuned.plain:.2f}",
        f"{tuned.plain / row.bytes:.2f} x",
        "" if row.predicted is None else f"{row.predicted:.6f}",
        f"{found.kld.mean:.6f}",
        f"{found.kld.error:.6f}",
        f"{100 * found.same_top.mean:.2f} %",
    ]


# --- for programs --------------------------------------------------------------------------------------


def _document(path: str, asked: Asked, tuned: Tuned) -> dict[str, Any]:
    return {
        "file": path,
        "ctx": tuned.context,
        "memory": asked.budget,
        "f16_bytes": tuned.plain,
        "window": asked.windows.size,
        "chunks": asked.chunks,
        "other_windows": tuned.apart,
        "policy": tuned.chosen.policy,
        "sensitivities": [
            {"layer": slot, "plane": plane, "kld": dict(by_codec)}
            for (slot, plane), by_codec in sorted(tuned.sensitivities.items())
        ],
        "rows": [_row(row, tuned) for row in tuned.rows],
    }


def _row(row: Row, tuned: Tuned) -> dict[str, Any]:
    return {
        "policy": row.policy,
        "preset": row.name is not None,
        "chosen": row.chosen,
        "bytes": row.bytes,
        "bits": 16 * row.bytes / tuned.plain,
        "ratio": tuned.plain / row.bytes,
        "predicted_kld": row.predicted,
        "mean_kld": row.found.kld.mean,
        "mean_kld_error": row.found.kld.error,
        "same_top": row.found.same_top.mean,
    }
