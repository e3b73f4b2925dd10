"""What all commands of `briolette` share: how they end, and the options before a command."""

from __future__ import annotations

import _thread
import errno
import io
import os
import sys
import threading
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from briolette.spec.errors import BrioletteError

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + SIGINT and SIGPIPE, as shells count
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


class Commands(TyperGroup):
    """All commands, with one way to end: a mistake is a message and exit code 2, Ctrl-C is no mistake."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _take_places()
        sys.unraisablehook = _interrupt_again
        try:
            return super().main(*args, **kwargs)
        except OSError as problem:
            if not _is_of_output(problem):
                raise
            from ..commands.terminal import error

            _drop_output()
            error(f"standard output cannot be written: {problem.strerror or 'it is closed'}")
            sys.exit(2)

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
            error(f"there is not enough memory{what}; a smaller --ctx or --chunk needs less")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _drop_output()  # who reads our results has enough
            raise typer.Exit(PIPE_CLOSED) from None


def _take_places() -> None:
    """Opens the standard streams that came closed, in whose places files of ours would be opened otherwise. To write
    to standard output stays a mistake."""
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), "w" if flags else "r"))


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C may come while Python is where nothing can be raised: in a callback of the garbage collector, say. It
    comes again, a moment later."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.02, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def _is_of_output(problem: OSError) -> bool:
    """Whether it was standard output that could not be written; commands tell of their own files themselves."""
    return isinstance(problem, io.UnsupportedOperation) or (problem.filename is None and problem.errno in UNWRITABLE)


def _drop_output() -> None:
    """Lets go of results that nobody takes: Python would complain when it flushes them at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
