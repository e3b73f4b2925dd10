"""How `report` is called."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app
from .options import Chunk, Context, Kv, Path_, Spec

MACHINE = "Machine"


@app.command(
    epilog="Examples:\n\n"
    "briolette report model.gguf\n\n"
    "briolette report model.gguf gemma3\n\n"
    "briolette report model.gguf -o model.html --form prefill --ctx 8192\n\n"
    "briolette report model.gguf --bandwidth 80 --peak 1500"
)
def report(
    model: Path_,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="OTHER",
            help="What to show beside it: anything that `diff` takes.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write it; - is standard output. (default: the model's name with .html, here)",
        ),
    ] = None,
    form: Annotated[
        str, typer.Option(help="What it shows first: decode (one token) or prefill (many tokens).")
    ] = "decode",
    bandwidth: Annotated[
        float | None,
        typer.Option(
            help="GB/s that the machine reads from memory. (default: measured here)",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = None,
    peak: Annotated[
        float | None,
        typer.Option(
            help="GFLOP/s that it computes in float32. (default: measured here)",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = None,
    context: Context = None,
    kv: Kv = None,
    chunk: Chunk = 256,
    spec: Spec = None,
) -> None:
    """Writes a page about a model: layers, spec and program side by side, stages, memory, roofline."""
    from ..commands.report import report as command

    options = {"spec": spec, "kv": kv, "context": context, "chunk": chunk}
    command(model, other, output, form, bandwidth, peak, options)
