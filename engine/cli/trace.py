"""How `trace` is called."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .app import app
from .options import Backend, Json, Kv, Path_, Spec


@app.command(
    epilog="Examples:\n\n"
    'briolette trace model.gguf --prompt "The capital of France is"\n\n'
    'briolette trace model.gguf --prompt "The capital of France is" -o right.npz\n\n'
    "briolette trace model.gguf --tokens 2,5,9 -o some.npz --values 'blk.3.*' --values main\n\n"
    "briolette trace model.gguf --spec my.arch --against right.npz\n\n"
    'briolette trace model.gguf --spec my.arch --against model.gguf --prompt "Hello"'
)
def trace(
    model: Path_,
    prompt: Annotated[str | None, typer.Option(help="The text to run. (default: the reference's tokens)")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token ids to run instead, such as 2,5,9.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Write the values to this .npz file.")] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Record or compare only values of such names, * and ? allowed; repeatable."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="REF", help="Compare with a trace, or with a model file run here.")
    ] = None,
    against_spec: Annotated[
        str | None, typer.Option(help="The architecture for a model file to compare with. (default: the shipped one)")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="The least relative error of one step that counts. (default: by REF's precision)"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every value, not one row a layer.")] = False,
    as_json: Json = False,
    kv: Kv = None,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Records every named value of a pass, or finds the first line where a program and a reference part.

    With --against, exits with 1 when something diverges and with 0 when nothing does.
    """
    # numpy's own threads wait busily for products of a few rows, beside the engine's: one is faster.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ..commands.trace import trace as command

    options = {"backend": backend, "kv": kv, "spec": spec}
    code = command(
        model, prompt, tokens, output, against, against_spec, values or [], tolerance, everything, as_json, options
    )
    raise typer.Exit(code)
