"""How `diff` is called."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app
from .options import Json, Kv

SIDE = (
    "A GGUF file, an .arch file or a shipped one's name, or IR as `show` prints it (-: from standard input); "
    "@STAGE picks a stage."
)


@app.command(
    epilog="Examples:\n\n"
    "briolette diff gemma3 gemma4\n\n"
    "briolette diff gemma4 my.arch --on model.gguf\n\n"
    "briolette diff model.gguf@elaborated model.gguf@optimised\n\n"
    "briolette diff gemma2 gemma3 --html diff.html"
)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other, likewise.")],
    on: Annotated[
        str | None, typer.Option(help="A model file for whose sizes .arch files are compiled. (default: example sizes)")
    ] = None,
    form: Annotated[str, typer.Option(help="Of stages after `unrolled`: decode, prefill or all.")] = "decode",
    kv: Kv = None,
    html: Annotated[
        str | None, typer.Option(help="Write a page with both side by side to this file; - is standard output.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Text on standard output, which is the default.")] = False,
    as_json: Json = False,
    everything: Annotated[bool, typer.Option("--all", help="List tensors that differ in shape alone, too.")] = False,
) -> None:
    """Tells how two architectures, models or stages differ. Exit code 0: not at all, 1: they do, 2: a mistake."""
    if text and as_json:
        raise typer.BadParameter("--text and --json exclude each other: leave one out")
    from ..commands.diff import diff as command

    raise typer.Exit(command(a, b, on, form, kv, html, as_json, everything))
