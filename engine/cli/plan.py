"""How `plan` is called."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app
from .options import ENGINE, Backend, Chunk, Context, Json, Kv, Path_, Spec, Threads, Weights


@app.command(
    epilog="Examples:\n\n"
    "briolette plan model.gguf\n\n"
    "briolette plan model.gguf --ctx 131072 --kv f16 --memory 8GB\n\n"
    "briolette plan model.gguf --memory 6GiB --json\n\n"
    "briolette plan model.gguf --backend cuda --memory 24GB"
)
def plan(
    model: Path_,
    context: Context = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory to fit into, with --backend cuda the GPU's: 8GB, 7.5GiB, 500MB. (default: what is available "
            "now)",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    kv: Kv = None,
    weights: Weights = None,
    chunk: Chunk = 256,
    sequences: Annotated[
        int, typer.Option(min=1, help="Sequences that are held side by side.", rich_help_panel=ENGINE)
    ] = 1,
    threads: Threads = None,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Tells the memory a model will take, before anything is loaded, and the largest context that fits.

    Exit code 0: it fits; 1: it does not.
    """
    from ..commands.plan import plan as command

    options = {"spec": spec, "kv": kv, "threads": threads, "context": context, "chunk": chunk, "weights": weights}
    options["sequences"] = sequences
    raise typer.Exit(command(model, backend, memory, as_json, options))
