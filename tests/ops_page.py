"""Writes docs/ops.md from the op table and from what the backends' own tables say.

python tests/ops_page.py             # exit code 1 where the page is not what would be written now
python tests/ops_page.py --update    # write it
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("", "backends", "compiler")]

from fresh import kept  # noqa: E402
from programs import ARM, Program, T  # noqa: E402

from briolette.backends import formats, reference  # noqa: E402
from briolette.backends.cpu.emit import Emitter, layout_of  # noqa: E402
from briolette.backends.cpu.support import kernels  # noqa: E402
from briolette.backends.cuda import support as cuda_support  # noqa: E402
from briolette.backends.cuda.compilation import compiled as cuda_compiled  # noqa: E402
from briolette.backends.support import OWN  # noqa: E402
from briolette.compiler.dims import evaluate  # noqa: E402
from briolette.compiler.errors import BrioletteError  # noqa: E402
from briolette.compiler.ir import Node, topological  # noqa: E402
from briolette.compiler.ops import OPS, REQUIRED, Op, node  # noqa: E402
from briolette.compiler.pipeline import Form, optimise  # noqa: E402
from briolette.compiler.plan import LEAVES, Plan, plan  # noqa: E402

from strategies import Seeded  # noqa: E402

PAGE = ROOT / "docs" / "ops.md"
COMMAND = "python tests/ops_page.py --update"
MOST = 50  # random uses that are looked at for one with rows
ROWS = 2  # of the programs that are tried with every format
HEAD = f"""# The ops

Written by `{COMMAND}` from the op table (`compiler/opset/`) and the backends' own tables;
`make check` fails where it is out of date. [ir.md](ir.md) says how ops make a program,
[add-an-op.md](add-an-op.md) how to add one.

A `?` marks an operand that may be absent, a `*` any number of operands; attributes have their defaults beside them.
Traits: `elementwise` acts value by value, and broadcasts; `row` acts on each row of the last axis alone; `token`
needs for a token's result that token's rows alone; `view` moves nothing; `leaf` has no operands; `effect` writes
a cache; `structure` exists in block form, or around what one kernel runs. The example is a random legal use,
with its cost in floating point operations."""
BACKENDS = """
## Op and backend

`reference` is numpy: the op's own definition. In `cpu` and `cuda`, kernels of the families `linear`, `experts` and
`rows` compute what the fuser puts into them; *own* is a kernel by itself; *decomposes* names the ops that an op's
body is written in; a *view* is read where it lies; an *input* is what a step is given, or lies in the file; *at load*
is what is made once, when a model is loaded. Kernels of `cuda` have run in an emulator, not on a GPU:
[cuda.md](cuda.md).
"""
FORMATS = """
## Ops on weights, by block format

The formats of the table in `backends/formats.py`, and the ops that read each as it is stored. For `cpu` and `cuda`, a
program of the op alone has been emitted.
"""


def page() -> str:
    """The whole text."""
    return "\n".join([HEAD, *themes(), BACKENDS, *backends(), FORMATS, *stored()])


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# --- what ops are ----------------------------------------------------------------------------------------


def themes() -> Iterator[str]:
    """A section a file of the op table."""
    by_file: dict[str, list[Op]] = {}
    for op in OPS.values():
        by_file.setdefault(op.evaluate.__module__, []).append(op)
    for module, ops in by_file.items():
        title = (import_module(module).__doc__ or "").strip().splitlines()[0].removesuffix(".")
        yield f"\n## {title}\n"
        yield row("op", "attributes", "what it is", "traits", "example")
        yield row("---", "---", "---", "---", "---")
        for op in ops:
            attributes = ", ".join(attribute(*item) for item in op.attrs.items())
            yield row(
                f"`{op.name}({', '.join(op.operands)})`", attributes, op.doc, ", ".join(sorted(op.traits)), example(op)
            )


def attribute(name: str, default: object) -> str:
    if default is REQUIRED:
        return f"`{name}`"
    return f"`{name} = {'none' if default is None else str(default).lower()}`"


def example(op: Op) -> str:
    """A random legal use: shapes, and what it costs."""
    if op.sample is None:
        return ""
    args, attrs = sampled(op)
    made = node(op.name, *args, **attrs)
    sizes = {"C": sum(dim for dim in args[0].shape if isinstance(dim, int))}
    flops = op.flops(*(tuple(evaluate(dim, sizes) for dim in item.shape) for item in (made, *args)))
    result = f"[{', '.join(map(str, made.shape))}]"
    return f"{', '.join(str(list(arg.shape)) for arg in args)} → {result}" + (f": {flops}" if flops else "")


def sampled(op: Op) -> tuple[list[Node], dict[str, Any]]:
    """Operands and attributes of the first random use that has rows."""
    assert op.sample is not None
    sample = next(
        found for seed in count() if len((found := op.sample(Seeded(seed))).args[-1].shape) > 1 or seed > MOST
    )
    return [node("param", name=f"p{i}", type=t) for i, t in enumerate(sample.args)], dict(sample.attrs)


# --- what backends do with them --------------------------------------------------------------------------


def backends() -> Iterator[str]:
    yield row("op", "reference", "cpu", "cuda")
    yield row("---", "---", "---", "---")
    native = {backend: known() for backend, known in NATIVE.items()}
    for name, op in OPS.items():
        ways = (way(op, known, backend) for backend, known in native.items())
        yield row(f"`{name}`", "numpy" if name in reference.ops() else "—", *ways)


NATIVE = {"cpu": kernels, "cuda": cuda_support.kernels}


def way(op: Op, native: dict[str, tuple[str, ...]], backend: str) -> str:
    """How a backend with kernels comes by an op. Every op must have a way."""
    if op.name in native:
        return ", ".join("*own*" if family == OWN else f"`{family}`" for family in native[op.name])
    if "structure" in op.traits:
        return "*structure*"
    for trait, shown in {"view": "*view*", "leaf": "*input*"}.items():
        if trait in op.traits:
            return shown
    if op.name in LEAVES:
        return "*at load*"
    if op.body is None:
        sys.exit(f"nothing runs the op {op.name} on {backend}: it needs a kernel, or a body of ops that have one")
    args, attrs = sampled(op)
    body = topological([op.body(*args, **{**op.attrs, **attrs})])
    return "*decomposes*: " + ", ".join(dict.fromkeys(f"`{item.op}`" for item in body if item.args))


# Ops that read a tensor as stored, each in a small program of that op on weights of a format.
ON_WEIGHTS = ("embed", "linear", "expert_linear", "dequant")


def stored() -> Iterator[str]:
    columns = [f"{backend} `{op}`" for backend in EMITTERS for op in ON_WEIGHTS]
    yield row("format", "elements a block", "bytes", "reference", *columns)
    yield row("---", "---:", "---:", "---", *["---"] * len(columns))
    for name, fmt in formats.FORMATS.items():
        marks = ["yes" if emits(op, name, emit) else "no" for emit in EMITTERS.values() for op in ON_WEIGHTS]
        yield row(f"`{name}`", str(fmt.elements), str(fmt.bytes), "yes", *marks)


EMITTERS: dict[str, Callable[[Plan], object]] = {
    "cpu": lambda planned: Emitter(ARM).program("tried", planned, layout_of([planned])),
    "cuda": lambda planned: cuda_compiled({"tried": planned}),
}


def emits(op: str, format: str, emit: Callable[[Plan], object]) -> bool:
    """Whether a kernel can be emitted for an op on weights of a format. The processor does not matter: nothing runs."""
    program, columns = Program(), 256
    x = program.input("x", ROWS, columns)
    if op == "embed":
        out = node("embed", program.weight("w", ROWS, columns, format=format), node("tokens", rows=T))
    elif op == "linear":
        out = node("linear", x, program.weight("w", ROWS, columns, format=format))
    elif op == "dequant":
        vector = program.weight("w", columns, format=format)
        out = node("mul", x, vector if format == "f32" else node("dequant", vector))
    else:
        ids = node("top", x, k=1)
        out = node("expert_linear", x, program.weight("w", columns, ROWS, columns, format=format), ids)
        out = node("reshape", out, shape=(T, ROWS))
    planned = plan(optimise(program.module(out), Form(logits="all")), ROWS)
    try:
        emit(planned)
    except (NotImplementedError, BrioletteError):
        return False
    return True


def main() -> int:
    return kept(PAGE, page() + "\n", f"docs/{PAGE.name} is not what the op table says: {COMMAND}")


if __name__ == "__main__":
    sys.exit(main())
