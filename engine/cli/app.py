"""What all commands of `briolette` share: how they end, and the options before a command."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from briolette.spec.errors import BrioletteError

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + SIGINT and SIGPIPE, as shells count


class Commands(TyperGroup):
    """All commands, with one way to end: a mistake is a message and exit code 2, Ctrl-C is no mistake."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrioletteError as problem:
            from ..commands.terminal import error

            error(str(problem))
            raise typer.Exit(2) from None
        except MemoryError as problem:
            from ..commands.terminal import error

            what = f" ({problem})" if str(problem) else ""
            error(f"there is not enough memory{what}; a smaller --context or --chunk needs less")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Who reads our results has enough. Python would complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Start with: briolette run MODEL.gguf "The capital of France is"',
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"briolette {version('briolette')}")
        raise typer.Exit


@app.callback()
def briolette(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Runs language models from one readable architecture file and a GGUF, compiled for this processor."""
