"""How `ablate` is called."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .app import app
from .options import ENGINE, Json, Path_, Spec, Threads


@app.command(
    epilog="Examples:\n\n"
    "briolette ablate model.gguf --text story.txt\n\n"
    "briolette ablate model.gguf --text story.txt --tokens 512 --json\n\n"
    "briolette ablate model.gguf --ids 2,651,9132,576 --spec my.arch"
)
def ablate(
    model: Path_,
    text: Annotated[str | None, typer.Option(metavar="FILE", help="The text to judge by; - is standard input.")] = None,
    ids: Annotated[str | None, typer.Option(metavar="LIST", help="Token ids instead of a text, such as 2,5,9.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of the text to use; the later half counts. (default: 12)", show_default=False),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="reference (numpy, all programs at once), or cpu, which compiles each.", rich_help_panel=ENGINE
        ),
    ] = "reference",
    threads: Threads = None,
    as_json: Json = False,
    spec: Spec = None,
) -> None:
    """Tells what each line of the architecture is worth: how far the model goes off without it."""
    if "numpy" not in sys.modules:
        # We share the work among threads ourselves, which does not suffer from other programs as BLAS' own do.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ..commands.ablate import ablate as command

    command(model, text, ids, tokens, backend, threads, as_json, spec)
