"""Puts a model's page together: what is compiled, what is measured, and the sections that show it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from briolette.backends.base import Options
from briolette.backends.reading import looked_up
from briolette.compiler.ir import Module
from briolette.compiler.pipeline import Trace, form_named
from briolette.compiler.text import layer_ranges, plain
from briolette.engine.gguf import GgufFile
from briolette.engine.memory import MemoryPlan, plan_memory
from briolette.engine.words import many, short_count, size
from briolette.spec.syntax import Architecture

from .ceilings import Machine
from .charts import Share, kv_chart, roofline, shares, times
from .costs import Step
from .follow import compiled
from .page import Html, Section, escape, page, table
from .picture import PALETTE, Layer, kinds_table, picture, stack, versions
from .program import blocks_data, op_docs, stages_data
from .spec_text import spec_html
from .words import RULES, STAGES
from .work import works

FORMS = ("decode", "prefill")


def report(
    file: GgufFile,
    tree: Architecture,
    trace: Trace,
    options: Options,
    form: str,
    machine: Machine,
    more: Sequence[Section] = (),
) -> str:
    """The page about a model. `trace` has the stages that all forms share; `form` is the program to show first;
    `more` are sections for the end of the page."""
    header, module = file.header, trace.modules["elaborated"]
    programs = [compiled(trace, name, form_named(name, options.cache)) for name in FORMS]
    steps = [Step("decode", 1, options.context), Step("prefill", options.chunk, options.context)]
    blocks = blocks_data(trace, programs, steps)
    memory = plan_memory(file, trace.modules["unrolled"], options)
    work = {step.name: works(blocks, step.name) for step in steps}
    kinds = {name: place % PALETTE for place, (name, _, _) in enumerate(module.kinds)}
    kept = {layer: kind.bytes / len(kind.stored) for kind in memory.kv for layer in kind.stored}
    layers = stack(module, kept)
    spec = Path(tree.span.file).name
    name = str(header.metadata.get("general.name") or file.path.stem)
    data = {
        "form": form,
        "spec": tree.source.rstrip("\n").split("\n"),
        "file": spec,
        "blocks": blocks,
        "docs": op_docs(blocks),
        "words": STAGES,
        "rules": RULES,
        "steps": {step.name: [step.tokens, step.context] for step in steps},
        "stages": {program.form: stages_data(program.trace) for program in programs},
    }
    sections: list[Section] = [
        ("model", "", _head(file, module, name, spec, len(layers), options)),
        ("layers", "Layers", _layers(module, layers, options)),
        ("program", "Spec and program", _program(tree, blocks, kinds)),
        ("pipeline", "Pipeline", PIPELINE),
        ("memory", "Memory", _memory(file, trace.modules["unrolled"], memory)),
        ("roofline", "Roofline", _roofline(work, steps, machine)),
        *more,
    ]
    return page(f"{name} · briolette", sections, data, _controls(form))


def _controls(form: str) -> str:
    """Which form of the program the whole page tells of."""
    buttons = "".join(
        f'<button data-form="{name}" aria-pressed="{str(name == form).lower()}">{name}</button>' for name in FORMS
    )
    return f'<div class="switch" role="group" aria-label="Form of the program">{buttons}</div>'


def _head(file: GgufFile, module: Module, name: str, spec: str, layers: int, options: Options) -> str:
    header = file.header
    parameters = sum(math.prod(t.shape) for t in header.tensors.values())
    trained = header.metadata.get(f"{header.architecture}.context_length")
    facts = [
        ("spec", spec),
        ("parameters", short_count(parameters)),
        ("file", size(file.size)),
        ("layers", layers),
        ("trained context", f"{trained:,}" if isinstance(trained, int) else "not said"),
        ("this page's context", f"{options.context:,}"),
        ("KV cache", options.cache),
    ]
    told = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts)
    params = "".join(f"<div><dt>{escape(key)}</dt><dd>{_param(value)}</dd></div>" for key, value in module.params)
    read = f'<div class="params"><h3>What the spec read from the file</h3><dl>{params}</dl></div>' if params else ""
    counts: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for tensor in header.tensors.values():
        counts[tensor.format] += 1
        stored[tensor.format] += len(file.tensor_bytes(tensor.name))
    parts: list[Share] = [
        (format, count, f"w{place % PALETTE}", many(counts[format], "tensor"))
        for place, (format, count) in enumerate(stored.most_common())
    ]
    return (
        f'<h1>{escape(name)}</h1><dl class="facts">{told}</dl>'
        f'<div class="two"><div>{shares("Tensors by format", parts)}</div>{read}</div>'
    )


def _param(value: Any) -> str:
    """A hyperparameter; where layers have their own, each value with its layers."""
    if not isinstance(value, tuple):
        return escape(plain(value))
    of: dict[Any, list[int]] = {}
    for layer, each in enumerate(value):
        of.setdefault(each, []).append(layer)
    if len(of) > 8:
        return escape(f"{len(of)} different values")
    return ", ".join(f"{escape(plain(each))} <small>{layer_ranges(which)}</small>" for each, which in of.items())


def _layers(module: Module, layers: Sequence[Layer], options: Options) -> str:
    drawn = picture(layers, [name for name, _, _ in module.kinds], f"at {options.context:,} tokens")
    said = "Each column is a layer, coloured by kind; the rows below show which blocks it calls."
    differing = versions(module, layers)
    if differing:
        said += " A number marks a version of a block that differs from the first of its kind."
    if any(layer.donors for layer in layers):
        said += " Arrows lead from layers without a cache of their own to the layer whose keys and values they read."
    return f'<p class="lead">{said}</p>{drawn}{kinds_table(module)}{differing}'


def _program(tree: Architecture, blocks: Sequence[dict[str, Any]], kinds: dict[str, int]) -> str:
    lines = _line_shares(blocks)
    return f"""
<p class="lead">Point at a line to see the ops it became, or at an op to see its line; choose either to hold it. The bar
beside a line is its part of the bytes that a step moves.</p>
<div class="panes">
<div class="pane"><div class="spec" tabindex="0" role="group" aria-label="The spec">
{spec_html(tree.source, lines, kinds)}</div></div>
<div class="pane"><div class="find"><input type="search" id="search" placeholder="Search ops, tensors, lines  ( / )"
 aria-label="Search ops" autocomplete="off" spellcheck="false"><output id="found"></output>
<button id="open-all">open all</button></div>
<div class="ir" id="ir"></div></div>
</div>"""


def _line_shares(blocks: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """For each line with ops, its part of all bytes, by form. An op counts for the first line it came from."""
    sums: dict[str, Counter[int]] = {form: Counter() for form in FORMS}
    seen: set[int] = set()
    for block in blocks:
        for op in block["ops"]:
            seen |= {line for line, *_ in op["lines"]}
            for form in FORMS if op["lines"] and not op["calls"] else ():
                sums[form][op["lines"][0][0]] += sum(op["cost"][form][1:3])
    wholes = {form: sum(count.values()) or 1 for form, count in sums.items()}
    return {line: {form: sums[form][line] / wholes[form] for form in FORMS} for line in sorted(seen)}


PIPELINE = """
<p class="lead">What the compiler did, stage by stage, verified after each. Choose a stage to read its program.</p>
<div class="stages" id="stages" role="tablist" aria-label="Stages"></div>
<div class="stage" id="stage" role="tabpanel"></div>"""


def _memory(file: GgufFile, module: Module, plan: MemoryPlan) -> str:
    kinds: list[Share] = [
        (f"KV {kind.kind}", kind.bytes, f"f{place % PALETTE}", _kv_words(kind.positions, kind.token_bytes, kind.stored))
        for place, kind in enumerate(plan.kv)
    ]
    rest: list[Share] = [
        ("arena", plan.arena, "w3", f"activations, {plan.options.chunk} tokens a prefill step"),
        ("decoded", plan.decoded, "w4", "small tensors kept as f32"),
        ("logits, scratch, tables", plan.logits + plan.scratch + plan.addresses, "w5", ""),
    ]
    whole: Counter[str] = Counter()
    tables = looked_up(module)
    for tensor in module.tensors:
        if tensor.name not in tables:
            whole[tensor.format] += len(file.tensor_bytes(tensor.name))
    mapped: list[Share] = [
        (format, count, f"w{place % 4}", "read whole, where it lies")
        for place, (format, count) in enumerate(whole.most_common())
    ]
    if plan.tables:
        mapped.append(("looked up", plan.looked_up, "w5", f"rows of tables, at most; they have {size(plan.tables)}"))
    mapped.append(("metadata", plan.metadata, "w4", "the vocabulary and other keys"))
    summary = table(
        [
            ["mapped from the file", size(plan.mapped)],
            ["beside the file, full at this context", size(plan.allocated)],
            ["interpreter, libraries, tokenizer (an estimate)", size(plan.process)],
            ["compiling, the first time only (an estimate)", size(plan.compiling)],
            [Html("<b>peak</b>"), Html(f"<b>{size(plan.peak)}</b>")],
        ],
        right="lr",
        css="sum",
    )
    growth = kv_chart(plan)
    chart = f"<h3>KV cache by position</h3>{growth}" if growth else ""
    return (
        f'<p class="lead">Of the {escape(plan.backend)} backend, with a context of {plan.options.context:,} tokens and '
        f"a KV cache of {escape(plan.options.cache)}; planned from the program, not measured.</p>"
        f'<div class="two"><div>{shares("Beside the file", kinds + rest)}{shares("From the file", mapped)}</div>'
        f"<div>{summary}{chart}</div></div>"
    )


def _kv_words(positions: int, token: int, stored: Sequence[int]) -> str:
    return f"{size(token)} a token in {many(len(stored), 'layer')}, {positions:,} positions"


def _roofline(work: dict[str, Any], steps: Sequence[Step], machine: Machine) -> str:
    tables = "".join(times(step.name, work[step.name], machine, step.tokens) for step in steps)
    decode, prefill = (step.tokens for step in steps)
    return (
        f'<p class="lead">What a step has to compute for each byte of weights and cache it has to read, against what a '
        f"machine can do. Decode: {decode} token at position {steps[0].context:,}; prefill: a step of {prefill} tokens "
        f"that ends there, of which the last token's logits are wanted. A dot is an op over all layers; its size is "
        f"its part of the step's least time.</p>"
        f'<p class="key"><i class="mark decode"></i>decode <i class="mark prefill"></i>prefill</p>'
        f"{roofline(work, machine)}"
        f'<ul class="from"><li>memory: {machine.bandwidth / 1e9:.1f} GB/s, {escape(machine.bandwidth_from)}</li>'
        f"<li>arithmetic: {machine.peak / 1e9:.0f} GFLOP/s, {escape(machine.peak_from)}</li></ul>{tables}"
    )


def default_output(model: str) -> Path:
    """Where a model's page goes unless somebody says otherwise: the current folder."""
    return Path(Path(model).stem + ".html")
