"""`briolette eval ppl` and `kld`: what a model predicts of a text, with each kind of KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.evaluation.figures import Divergence, Estimate, divergence, perplexity
from briolette.engine.evaluation.run import Beside, Evaluated, Row, Setting, evaluate
from briolette.engine.evaluation.windows import Windows, windows
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.engine.tokenizer import Tokenizer
from briolette.engine.words import many

from .telling import tell_of_prefill
from .terminal import TELLING, busy, note, result, result_json, table
from .texts import text_of

# Without --peer-kv: what is told beside a perplexity, and the caches of the table in docs/kv-cache.md.
PEER_PPL, PEER_KLD = ("f16",), ("q8_0", "q8_0/q4_0", "q5_0", "q4_0")
Peer = tuple[str | None, Path, list[str] | None]  # --peer, --peer-python, --peer-kv


def ppl(
    path: str,
    text: str,
    size: int,
    count: int | None,
    settings: Mapping[str, Any],
    options: dict[str, Any],
    peer: Peer,
    as_json: bool,
) -> None:
    """Prints a row for every cache, or JSON."""
    file, cut = _opened(path, text, size, count)
    found = evaluate(file, cut, _settings(settings), None, options, TELLING, _beside(peer, PEER_PPL))
    figures = [perplexity(row.found, len(cut)) for row in found.rows]
    if as_json:
        told = [_about(row) | _estimate("ppl", value) for row, value in zip(found.rows, figures, strict=True)]
        result_json(_document(file, cut, found, told))
        return
    head = ["engine", "KV cache", "bits", "PPL", "±", "95 % of windows' draws"]
    body = [
        [row.engine, row.kv, _bits(row), f"{value.mean:.4f}", f"{value.error:.4f}", _interval(value, 4)]
        for row, value in zip(found.rows, figures, strict=True)
    ]
    result(table([head, *body], "llrrrl"))
    _notes(cut, count, found)


def kld(
    path: str,
    text: str,
    size: int,
    count: int | None,
    settings: Mapping[str, Any],
    base: Mapping[str, Any],
    options: dict[str, Any],
    peer: Peer,
    as_json: bool,
) -> None:
    """Prints a row for every cache, or JSON."""
    file, cut = _opened(path, text, size, count)
    found = evaluate(file, cut, _settings(settings), Setting(**base), options, TELLING, _beside(peer, PEER_KLD))
    figures = [divergence(row.found, row.base, len(cut)) for row in found.rows if row.base is not None]
    if as_json:
        told = [_about(row) | _divergence(value) for row, value in zip(found.rows, figures, strict=True)]
        result_json(_document(file, cut, found, told))
        return
    head = ["engine", "KV cache", "bits", "mean KLD", "±", "median", "99 %", "99.9 %", "max", "same top", "±"]
    head += ["PPL", "of base", "±"]
    body = [[row.engine, row.kv, _bits(row), *_cells(value)] for row, value in zip(found.rows, figures, strict=True)]
    result(table([head, *body], "ll" + "r" * 12))
    _notes(cut, count, found)
    assert found.base is not None
    told_base = f"{found.base.kv} cache, {found.base.weights} weights, {found.base.prefill} prefill"
    theirs = "".join(f"; {name}'s, its f16 cache" for name in found.peers)
    note(f"the baseline of our rows: {told_base}{theirs}")


def _opened(path: str, text: str, size: int, count: int | None) -> tuple[GgufFile, Windows]:
    file = open_gguf(path)
    content = text_of(text)
    with busy("tokenising the text"):
        return file, windows(content, Tokenizer.from_gguf(file), size, count)


def _settings(given: Mapping[str, Any]) -> list[Setting]:
    kinds = dict.fromkeys(given["kv"] or [None])
    return [Setting(kv, given["weights"], given["prefill"]) for kv in kinds]


def _beside(peer: Peer, caches: tuple[str, ...]) -> Beside | None:
    name, python, types = peer
    if name is None and types:
        raise BrioletteError("--peer-kv says how a peer keeps its cache: give --peer llama.cpp, too")
    return None if name is None else Beside(name, python, tuple(dict.fromkeys(types or caches)))


# --- for people ----------------------------------------------------------------------------------------


def _cells(value: Divergence) -> list[str]:
    return [
        f"{value.kld.mean:.6f}",
        f"{value.kld.error:.6f}",
        *(f"{number:.6f}" for number in value.percentiles.values()),
        f"{value.highest:.4f}",
        f"{100 * value.same_top.mean:.2f} %",
        f"{100 * value.same_top.error:.2f}",
        f"{value.ppl.mean:.4f}",
        f"{value.ratio.mean:.5f}",
        f"{value.ratio.error:.5f}",
    ]


def _bits(row: Row) -> str:
    return "" if row.bits is None else f"{row.bits:.2f}"


def _interval(value: Estimate, digits: int) -> str:
    return "" if value.interval is None else f"{value.interval[0]:.{digits}f} to {value.interval[1]:.{digits}f}"


def _notes(cut: Windows, count: int | None, found: Evaluated) -> None:
    loaded = [row.loaded for row in found.rows if row.loaded is not None]
    for weights in dict.fromkeys(one.weights for one in loaded if one.prefill == "fast"):
        tell_of_prefill("fast", weights or "")
    fewer = f", all that the text has; {count} were asked for" if count is not None and count > len(cut) else ""
    more = f", of {cut.of}" if len(cut) < cut.of else ""
    note(f"\n{many(len(cut), 'window')} of {cut.size} tokens{more}{fewer}; {cut.scored} predictions count")
    for name, version in found.peers.items():
        note(f"{name}: {version}, as llama-cpp-python, with flash attention")


# --- for programs --------------------------------------------------------------------------------------


def _document(file: GgufFile, cut: Windows, found: Evaluated, told: list[dict[str, Any]]) -> dict[str, Any]:
    """The first row's figures stand at the top, too: often it is the only one."""
    return {
        "file": str(file.path),
        "ctx": cut.size,
        "chunks": len(cut),
        "scored": cut.scored,
        "base": None if found.base is None else vars(found.base),
        "peers": found.peers,
        **told[0],
        "rows": told,
    }


def _about(row: Row) -> dict[str, Any]:
    loaded = row.loaded
    ways = {} if loaded is None else {"weights": loaded.weights, "prefill": loaded.prefill}
    return {"engine": row.engine, "kv": row.kv, "bits": row.bits} | ways


def _estimate(name: str, value: Estimate) -> dict[str, Any]:
    return {name: value.mean, f"{name}_error": value.error, f"{name}_interval": value.interval}


def _divergence(value: Divergence) -> dict[str, Any]:
    return (
        _estimate("mean_kld", value.kld)
        | {f"{name}_kld": number for name, number in value.percentiles.items()}
        | {"max_kld": value.highest}
        | _estimate("same_top", value.same_top)
        | _estimate("ppl", value.ppl)
        | _estimate("base_ppl", value.base_ppl)
        | _estimate("ppl_ratio", value.ratio)
    )
