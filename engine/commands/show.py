"""`briolette show`: the program after any stage, what the rules did, and the memory plan."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

from briolette.backends.base import Source
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module, nodes_of
from briolette.compiler.pipeline import STAGES, Trace, form_named, front, optimise, stage_of
from briolette.compiler.plan import plan
from briolette.compiler.text import print_module
from briolette.engine.gguf import open_gguf
from briolette.engine.model import options_for
from briolette.engine.source import architecture
from briolette.engine.subjects import is_architecture, parted, sized, stage_named

from .terminal import busy, colours, result, result_json, table

# What stands out on a terminal, as SGR codes: spec lines, weights, names, types, the ops' and blocks' words.
PAINT = re.compile(
    r"(?P<d>   # .*$)|(?P<green>@[^\s:\[]+)|(?P<cyan>%[\w.'@]+)|(?P<yellow>\[[^\]]*\] \w+)"
    r"|(?P<bold>^\s*(?:module|kind|tensor|block|main|effect|return)\b)|(?P<blue>&[\w.]+|\b[a-z_]+(?=\())",
    re.MULTILINE,
)
CODES = {"d": "2", "green": "32", "cyan": "36", "yellow": "33", "bold": "1", "blue": "34"}


def show(
    path: str,
    stage: str | None,
    form: str,
    block: str | None,
    full: bool,
    stats: bool,
    memory: bool,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    wanted = form_named(form)
    if stats and memory:
        raise BrioletteError("--stats and --plan each print something instead of the program; leave one out")
    name, told = parted(path)
    if told is not None and stage is not None and told != stage_named(stage):
        raise BrioletteError(f"{path} names the stage {told}, and --stage another; leave one out")
    stage = told or stage_named(stage or STAGES[0])
    spec, kv, context, chunk = (options[key] for key in ("spec", "kv", "context", "chunk"))
    file = None
    if is_architecture(name) and spec is None:
        tree, header = sized(name)
    else:
        file = open_gguf(name)
        header, tree = file.header, architecture(spec, file.header)
    trace = Trace()
    with busy("compiling"):
        module = front(tree, header, trace)
        made = Source.of(module)
        engine = options_for(header if file is None else file, kv, None, context, chunk, made=made)
        if stats or memory or stage not in trace.modules:
            module = optimise(module, replace(wanted, cache=engine.cache), trace)
    rows = 1 if form == "decode" else engine.chunk
    if stats:
        _stats(trace, as_json)
    elif memory:
        _memory(module, rows, as_json)
    else:
        text = print_module(stage_of(trace, stage), tensors=full)
        text = text if block is None else part(text, block)
        if as_json:
            result_json({"stage": stage, "form": form, "text": text})
        else:
            result(painted(text) if colours(sys.stdout) else text, end="")


def part(text: str, name: str) -> str:
    """One block of a printed program."""
    found = re.search(rf"^(?:block )?{re.escape(name)}(?:\(.*| )\{{\n(?:.*\n)*?\}}\n", text, re.MULTILINE)
    if found is None:
        names = [*re.findall(r"^block ([^(]+)\(", text, re.MULTILINE), "main"]
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise BrioletteError(f"this stage has no block `{name}`; it has {shown}")
    return found[0]


def painted(text: str) -> str:
    """A printed program with colours."""

    def paint(match: re.Match[str]) -> str:
        assert match.lastgroup is not None
        return f"\033[{CODES[match.lastgroup]}m{match[0]}\033[0m"

    return PAINT.sub(paint, text)


def _stats(trace: Trace, as_json: bool) -> None:
    stages = [
        {
            "stage": name,
            "nodes": sum(1 for _ in nodes_of(module)),
            "seconds": round(trace.seconds[name], 4),
            "hits": dict(trace.hits[name].most_common()),
        }
        for name, module in trace.modules.items()
    ]
    if as_json:
        result_json(stages)
        return
    rows = [["stage", "nodes", "seconds", "rule hits"]]
    for entry in stages:
        hits = entry["hits"]
        assert isinstance(hits, dict)
        first, *others = [f"{count:6} {rule}" for rule, count in hits.items()] or [""]
        rows.append([str(entry["stage"]), str(entry["nodes"]), f"{entry['seconds']:.3f}", first])
        rows += [["", "", "", other] for other in others]
    result(table(rows, "lrr"))


def _memory(module: Module, rows: int, as_json: bool) -> None:
    found = plan(module, rows)
    if not as_json:
        result(found.report())
        return
    buffers = [
        {
            "name": module.names.get(b.node, b.node.op),
            "type": str(b.node.type),
            "offset": b.offset,
            "bytes": b.bytes,
            "waves": [b.first, b.last],
        }
        for b in found.buffers.values()
    ]
    result_json(
        {
            "rows": rows,
            "kernels": len(found.steps),
            "waves": found.waves,
            "arena_bytes": found.arena,
            "buffers": buffers,
        }
    )
