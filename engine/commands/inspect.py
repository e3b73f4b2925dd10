"""`briolette inspect`: what a model file is, what its architecture makes of it, and the memory it needs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import TensorInfo
from briolette.compiler.policy import policy_named
from briolette.compiler.text import layer_ranges, plain
from briolette.engine.available import available_memory
from briolette.engine.backends import backend_named
from briolette.engine.fitting import fitted
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.engine.memory import plan_memory
from briolette.engine.model import options_for
from briolette.engine.source import ModelSource, architecture, source_of
from briolette.engine.tokenizer import Tokenizer
from briolette.engine.words import short_count, size

from . import plan
from .terminal import busy, note, result, result_json, table

SHOWN_ITEMS, SHOWN_CHARS = 6, 100


def inspect(path: str, tensors: bool, keys: bool, as_json: bool, options: dict[str, Any]) -> None:
    file = open_gguf(path)
    found = describe(file, options)
    if tensors:
        found["tensors"] = [_tensor(file, t) for t in file.header.tensors.values()]
    if keys:
        found["metadata"] = {key: _value(value) for key, value in file.header.metadata.items()}
    if as_json:
        result_json(found | ({"memory": plan.figures(found["memory"])} if "memory" in found else {}))
        return
    result(report(found))
    for what in ("problem", "tokenizer_problem"):
        if what in found:
            note(f"\n{found[what]}")


def describe(file: GgufFile, options: dict[str, Any]) -> dict[str, Any]:
    """Everything about a model file, as plain values and a MemoryPlan. `problem` says why it cannot be compiled,
    if so.

    Options that cannot be are the caller's mistake and no property of the file: they raise BrioletteError.
    """
    header, metadata = file.header, file.header.metadata
    kv, spec = options["kv"], options["spec"]
    if kv is not None:
        policy_named(kv)  # raises where it is none
    tree = None if spec is None else architecture(spec, header)
    found: dict[str, Any] = {
        "file": str(file.path),
        "files": len(file.shards),
        "bytes": file.size,
        "name": metadata.get("general.name"),
        "architecture": header.architecture,
        "license": metadata.get("general.license"),
        "parameters": sum(math.prod(t.shape) for t in header.tensors.values()),
        "context_length": metadata.get(f"{header.architecture}.context_length"),
        "formats": _formats(file),
        "tokenizer": None,
    }
    try:
        tokenizer = Tokenizer.from_gguf(file)
        found["tokenizer"] = {
            "model": tokenizer.model,
            "tokens": tokenizer.vocab_size,
            "bos": None if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
            "adds_bos": tokenizer.add_bos,
            "stops": [tokenizer.token_text(token) for token in sorted(tokenizer.stop_ids)],
            "chat_template": isinstance(metadata.get("tokenizer.chat_template"), str),
        }
    except BrioletteError as problem:
        found["tokenizer_problem"] = str(problem)
    try:
        with busy("compiling"):
            found |= _program(file, source_of(tree, header), options)
    except BrioletteError as problem:
        if tree is not None:  # the file may be fine: the spec that was given does not fit it
            raise
        found["problem"] = str(problem)
    return found


def _program(file: GgufFile, source: ModelSource, options: dict[str, Any]) -> dict[str, Any]:
    """Kinds of layers, and the memory of a CPU engine with these options."""
    wanted = [options["kv"], None, options["context"], options["chunk"]]
    engine = options_for(file, *wanted, backend_named("cpu").default_weights(), made=source)
    engine = fitted(file, source, engine, "cpu", available_memory())
    planned, module = plan_memory(file, source, engine), source.module
    values = {name: dict(entries) for name, _, entries in module.kinds}
    kinds = [
        {
            "kind": kind.kind,
            "layers": list(kind.layers),
            "values": values.get(kind.kind, {}),
            "kv_layers": len(kind.stored),
            "kv_token_bytes": kind.token_bytes,
            "kv_positions": kind.positions,
            "kv_bytes": kind.bytes,
        }
        for kind in planned.kv
    ]
    return {"spec": module.name, "kinds": kinds, "memory": planned}


def _formats(file: GgufFile) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for tensor in file.header.tensors.values():
        counts[tensor.format] += 1
        weights[tensor.format] += math.prod(tensor.shape)
        stored[tensor.format] += len(file.tensor_bytes(tensor.name))
    return [
        {"format": name, "tensors": counts[name], "weights": weights[name], "bytes": count}
        for name, count in stored.most_common()
    ]


def _tensor(file: GgufFile, tensor: TensorInfo) -> dict[str, Any]:
    stored = len(file.tensor_bytes(tensor.name))
    return {"name": tensor.name, "shape": list(tensor.shape), "format": tensor.format, "bytes": stored}


def _value(value: object) -> Any:
    """A metadata value; of a long array its beginning and its length."""
    if isinstance(value, str | int | float | bool):
        return value
    items = list(value[:SHOWN_ITEMS]) if hasattr(value, "__getitem__") else [str(value)]
    count = len(value) if hasattr(value, "__len__") else len(items)
    return items if count <= SHOWN_ITEMS else {"first": items, "length": count}


def report(found: dict[str, Any]) -> str:
    """The description as text."""
    parts = f" in {found['files']} files" if found["files"] > 1 else ""
    about = [
        ["file", f"{found['file']}  ({size(found['bytes'])}{parts})"],
        ["name", str(found["name"] or "-")],
        [
            "architecture",
            f"{found['architecture']}" + (f"  (spec {found['spec']})" if "spec" in found else ""),
        ],
        ["licence", str(found["license"] or "not said")],
        ["parameters", f"{found['parameters']:,}  ({short_count(found['parameters'])})"],
        ["context", str(found["context_length"] or "not said")],
    ]
    if found["tokenizer"]:
        t = found["tokenizer"]
        bos = f"begins with {t['bos']}" if t["adds_bos"] else "begins with no BOS"
        template = "has a chat template" if t["chat_template"] else "no chat template"
        about.append(["tokenizer", f"{t['model']}, {t['tokens']:,} tokens, {bos}, {template}"])
        about.append(["", f"stops at {' '.join(t['stops'])}"])
    sections = [table(about)]
    if "kinds" in found:
        sections.append(_kinds(found["kinds"]))
    total = {key: sum(row[key] for row in found["formats"]) for key in ("tensors", "weights", "bytes")}
    rows = [["format", "tensors", "weights", "bytes", "bits a weight"]]
    for row in (*found["formats"], {"format": "all", **total}):
        bits = f"{8 * row['bytes'] / row['weights']:.2f}" if row["weights"] else "-"
        rows.append([row["format"], str(row["tensors"]), f"{row['weights']:,}", size(row["bytes"]), bits])
    sections.append(table(rows, "lrrrr"))
    if "memory" in found:
        sections.append(table(plan.rows(found["memory"]), "lr"))
    if "tensors" in found:
        rows = [["tensor", "shape", "format", "bytes"]]
        rows += [[t["name"], " x ".join(map(str, t["shape"])), t["format"], size(t["bytes"])] for t in found["tensors"]]
        sections.append(table(rows, "lllr"))
    if "metadata" in found:
        sections.append(table([[key, _shown(value)] for key, value in found["metadata"].items()]))
    return "\n\n".join(sections)


def _kinds(kinds: list[dict[str, Any]]) -> str:
    rows = [["kind", "layers", "", "values"]]
    for row in kinds:
        values = ", ".join(f"{key} {plain(value)}" for key, value in row["values"].items())
        rows.append([row["kind"], str(len(row["layers"])), layer_ranges(row["layers"]), values])
    return table(rows, "lr")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        items = ", ".join(map(_shown, value["first"]))
        return f"[{items}, … {value['length']:,} in all]"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
