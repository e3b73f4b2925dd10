"""`briolette ablate`: what each line of an architecture is worth, costliest first."""

from __future__ import annotations

import math
import shutil
import sys
from typing import Any

from briolette.backends.base import Weights
from briolette.compiler.errors import BrioletteError
from briolette.engine.ablation import Ablation, Worth
from briolette.engine.ablation import ablate as measure
from briolette.engine.divergence import Score
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.engine.model import cores
from briolette.engine.source import architecture
from briolette.engine.tokenizer import Tokenizer
from briolette.engine.words import ids_of

from .terminal import Bar, note, result, result_json, table
from .texts import text_of

TOKENS = 12  # so many answer in a few seconds on a small model; more tell more
NARROWEST = 60  # columns
BELOW = " " * 6  # before a spec's line that stands in a row of its own
LOST = 1e6  # a perplexity far above that of any text by chance


def ablate(
    path: str,
    text: str | None,
    ids: str | None,
    tokens: int | None,
    backend: str,
    threads: int | None,
    as_json: bool,
    spec: str | None,
) -> None:
    file = open_gguf(path)
    tree = architecture(spec, file.header)
    known = token_list(file, text, ids)
    wanted = min(TOKENS, len(known)) if tokens is None else tokens
    if len(known) < wanted:
        raise BrioletteError(f"the text has {len(known)} tokens, and --tokens asks for {wanted}")
    bar = Bar("without each line", least=1)
    try:
        found = measure(
            tree,
            file.header,
            Weights(file.tensor_bytes),
            known[:wanted],
            backend,
            cores() if threads is None else threads,
            bar,
        )
    finally:
        bar.close()
    if as_json:
        result_json(_json(found))
        return
    result(report(found, _columns()))
    more = f", of {len(known)}: --tokens takes more" if wanted < len(known) else ""
    note(f"\nfrom {found.tokens} tokens{more}; the last {found.scored} of them count")
    note(f"{len(found.left_out)} switches change nothing here, or leave nothing that runs: --json lists them")


def token_list(file: GgufFile, text: str | None, ids: str | None) -> list[int]:
    """The tokens to judge by, from where they were given."""
    if (text is None) == (ids is None):
        raise BrioletteError("give either a text with --text FILE, or token ids with --ids 2,5,9")
    if ids is not None:
        return ids_of(ids, "--ids")
    assert text is not None
    return Tokenizer.from_gguf(file).encode(text_of(text))


# --- what is shown -------------------------------------------------------------------------------------


def report(found: Ablation, width: int | None = None) -> str:
    """The table. Where that is wider than `width` columns, the spec's lines stand below what is without them."""
    rows = [["KL", "top-1", "perplexity", "line", "without it"]]
    rows.append([*_figures(found.own), "", "the model as it is"])
    rows += [[*_figures(w.score), str(w.switch.span.line), w.switch.what] for w in found.lines]
    sources = ["", "", *(w.switch.source for w in found.lines)]
    shown = table([[*row, source] for row, source in zip(rows, sources, strict=True)], "rrrr")
    if width is None or all(len(line) <= width for line in shown.splitlines()):
        return shown
    upper = table(rows, "rrrr").splitlines()
    lines = (line for row, source in zip(upper, sources, strict=True) for line in (row, BELOW + source) if line.strip())
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _columns() -> int | None:
    """How wide a table may be: as wide as the terminal, if it is one."""
    return max(shutil.get_terminal_size().columns, NARROWEST) if sys.stdout.isatty() else None


def _figures(score: Score) -> list[str]:
    return [f"{score.kl:.4f}", f"{100 * score.agreement:.0f} %", _short(score.perplexity)]


def _short(value: float) -> str:
    """A perplexity; beyond a million it says no more than that the model is lost."""
    return f"{value:.2f}" if value < LOST else f"> {LOST:.0f}"


def _json(found: Ablation) -> dict[str, Any]:
    """Infinite figures are null: JSON has no word for them."""
    return {
        "tokens": found.tokens,
        "scored": found.scored,
        "perplexity": _finite(found.own.perplexity),
        "lines": [_line(worth) for worth in found.lines],
        "left_out": [
            {"line": left.switch.span.line, "what": left.switch.what, "reason": left.reason} for left in found.left_out
        ],
    }


def _line(worth: Worth) -> dict[str, Any]:
    switch, score = worth.switch, worth.score
    return {
        "file": switch.span.file,
        "line": switch.span.line,
        "column": switch.span.col,
        "what": switch.what,
        "source": switch.source,
        "kl": _finite(score.kl),
        "agreement": score.agreement,
        "perplexity": _finite(score.perplexity),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
