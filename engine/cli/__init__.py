"""The command `briolette`: how its commands are called. What they do is in `engine/commands/`.

Only typer is imported here; each command imports what it needs when it is called, so that help and
mistakes in the arguments answer at once.
"""

from . import (
    ablate,
    bench,
    compare,
    evaluate,
    generate,
    look,
    plan,
    report,
    trace,
    tune,
)  # the order of the commands in the help
from .app import app

__all__ = [
    "ablate",
    "app",
    "bench",
    "compare",
    "evaluate",
    "generate",
    "look",
    "main",
    "plan",
    "report",
    "trace",
    "tune",
]


def main() -> None:
    """The entry point of the command line."""
    app(prog_name="briolette")
