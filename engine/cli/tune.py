"""How `kv-tune` is called."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app
from .options import Backend, Chunk, Context, Json, Path_, Spec, Threads, Weights

HOW = "How it is measured"


@app.command(
    "kv-tune",
    epilog="Examples:\n\n"
    "briolette kv-tune model.gguf --text wiki.txt --memory 8MiB --ctx 4096\n\n"
    "briolette kv-tune model.gguf --text wiki.txt --memory 500MB --ctx 32768 --plot frontier.html --json",
)
def kv_tune(
    model: Path_,
    text: Annotated[
        str, typer.Option(metavar="FILE", help="The text to read; - is standard input.", show_default=False)
    ],
    memory: Annotated[
        str,
        typer.Option(help="Bytes that the cache may take when the context is full: 500MB, 7.5MiB.", show_default=False),
    ],
    context: Context = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a picture of the frontier: .html or .svg.", show_default=False),
    ] = None,
    bits: Annotated[
        list[str], typer.Option(metavar="LIST", help="Codecs that each layer is measured with.", rich_help_panel=HOW)
    ] = ["2,4"],  # noqa: B006
    points: Annotated[
        int, typer.Option(min=1, help="Budgets that the frontier is measured at.", rich_help_panel=HOW)
    ] = 5,
    chunks: Annotated[
        int,
        typer.Option(min=1, help="Windows for each layer, and as many others for the frontier.", rich_help_panel=HOW),
    ] = 4,
    window: Annotated[int, typer.Option(min=4, help="Tokens of a window.", rich_help_panel=HOW)] = 1024,
    sink: Annotated[
        int, typer.Option(min=0, help="First positions that coded layers keep in bf16.", rich_help_panel=HOW)
    ] = 16,
    recent: Annotated[int, typer.Option(min=0, help="Latest positions that they keep so.", rich_help_panel=HOW)] = 128,
    as_json: Json = False,
    threads: Threads = None,
    weights: Weights = None,
    chunk: Chunk = 256,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Chooses how each layer keeps its K and V, by what it costs in quality, under a budget of memory."""
    from ..commands.tune import kv_tune as command

    options = {"threads": threads, "weights": weights, "chunk": chunk, "backend": backend, "spec": spec}
    command(model, text, memory, context, plot, bits, points, chunks, window, (sink, recent), options, as_json)
