"""`briolette inspect`: what a model file is, what its architecture makes of it, and the memory it needs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from briolette.backends.cpu.emit import layout_of
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import TensorInfo
from briolette.compiler.ir import Module
from briolette.compiler.ops import CACHE_DTYPES
from briolette.compiler.pipeline import Form, front, optimise
from briolette.compiler.plan import plan
from briolette.compiler.text import layer_ranges
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.engine.model import architecture, options_for
from briolette.engine.tokenizer import Tokenizer

from .terminal import busy, note, result, result_json, size, table

ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
SHOWN_ITEMS, SHOWN_CHARS = 6, 100


def inspect(path: str, tensors: bool, keys: bool, as_json: bool, options: dict[str, Any]) -> None:
    file = open_gguf(path)
    found = describe(file, options)
    if tensors:
        found["tensors"] = [_tensor(file, t) for t in file.header.tensors.values()]
    if keys:
        found["metadata"] = {key: _value(value) for key, value in file.header.metadata.items()}
    if as_json:
        result_json(found)
        return
    result(report(found))
    for what in ("problem", "tokenizer_problem"):
        if what in found:
            note(f"\n{found[what]}")


def describe(file: GgufFile, options: dict[str, Any]) -> dict[str, Any]:
    """Everything about a model file, as plain values. `problem` says why it cannot be compiled, if so.

    Options that cannot be are the caller's mistake and no property of the file: they raise BrioletteError.
    """
    header, metadata = file.header, file.header.metadata
    kv, spec = options["kv"], options["spec"]
    if kv is not None and kv not in CACHE_DTYPES:
        raise BrioletteError(f"there is no KV cache type `{kv}`; there are {', '.join(CACHE_DTYPES)}")
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
            module = front(tree or architecture(None, header), header)
            found |= _program(file, module, options)
    except BrioletteError as problem:
        if tree is not None:  # the file may be fine: the spec that was given does not fit it
            raise
        found["problem"] = str(problem)
    return found


def _program(file: GgufFile, module: Module, options: dict[str, Any]) -> dict[str, Any]:
    """Kinds of layers, and the memory of a CPU engine with these options."""
    engine = options_for(file.header, module, options["kv"], None, options["context"], options["chunk"])
    plans = [
        plan(optimise(module, Form(tokens=1, cache=engine.cache)), 1),
        plan(optimise(module, Form(cache=engine.cache)), engine.chunk),
    ]
    kinds: dict[str, dict[str, Any]] = {
        name: {
            "kind": name,
            "layers": list(layers),
            "values": dict(entries),
            "kv_layers": 0,
            "kv_token_bytes": 0,
        }
        | {"kv_positions": 0, "kv_bytes": 0}
        for name, layers, entries in module.kinds
    }
    of = {layer: name for name, layers, _ in module.kinds for layer in layers}
    owners: set[int] = set()
    for plane in layout_of(plans).planes:
        name = of.setdefault(plane.slot, "layers")
        row = kinds.setdefault(
            name,
            {"kind": name, "layers": [], "values": {}}
            | dict.fromkeys(("kv_layers", "kv_token_bytes", "kv_positions", "kv_bytes"), 0),
        )
        ring = engine.context if plane.window is None else plane.window + engine.chunk
        token = plane.heads * plane.size * ELEMENT_BYTES[plane.dtype]
        row["kv_token_bytes"] += token
        row["kv_positions"] = max(row["kv_positions"], min(engine.context, ring))
        row["kv_bytes"] += token * min(engine.context, ring)
        if plane.slot not in owners:
            owners.add(plane.slot)
            row["kv_layers"] += 1
            if not module.kinds:
                row["layers"].append(plane.slot)
    return {
        "spec": module.name,
        "kinds": list(kinds.values()),
        "memory": {
            "context": engine.context,
            "chunk": engine.chunk,
            "kv_type": engine.cache,
            "weights": file.size,
            "kv": sum(row["kv_bytes"] for row in kinds.values()),
            "arena": max(p.arena for p in plans),
        },
    }


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
        ["parameters", f"{found['parameters']:,}  ({_short(found['parameters'])})"],
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
        sections.append(_memory(found))
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
        values = ", ".join(f"{key} {_short_value(value)}" for key, value in row["values"].items())
        rows.append([row["kind"], str(len(row["layers"])), layer_ranges(row["layers"]), values])
    return table(rows, "lr")


def _memory(found: dict[str, Any]) -> str:
    memory = found["memory"]
    rows = [
        ["memory", "bytes", ""],
        ["weights", size(memory["weights"]), "mapped from the file, read where used"],
    ]
    for row in found["kinds"]:
        if row["kv_layers"]:
            layers, positions = _layers(row["kv_layers"]), row["kv_positions"]
            what = f"{row['kv_token_bytes']:,} bytes a token in {layers}, {positions} positions"
            rows.append([f"KV {row['kind']}", size(row["kv_bytes"]), what])
    rows.append(["KV in all", size(memory["kv"]), f"{memory['kv_type']}, full at {memory['context']} tokens"])
    rows.append(["arena", size(memory["arena"]), f"activations, {memory['chunk']} tokens a prefill step"])
    return table(rows, "lr")


def _short(count: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return str(count)


def _short_value(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        items = ", ".join(map(_shown, value["first"]))
        return f"[{items}, … {value['length']:,} in all]"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"
