"""The command `briolette`: how its commands are called. What they do is in `engine/commands/`.

Only typer is imported here; each command imports what it needs when it is called, so that help and
mistakes in the arguments answer at once.
"""

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
            from .commands.terminal import error

            error(str(problem))
            raise typer.Exit(2) from None
        except MemoryError as problem:
            from .commands.terminal import error

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

# --- options that several commands share ---------------------------------------------------------------

Path_ = Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, or any part of a split one.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Stats = Annotated[bool, typer.Option("--stats", help="Tell speeds afterwards, on standard error.")]

ENGINE = "Engine"
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Threads. (default: one a core)", rich_help_panel=ENGINE, show_default=False),
]
Context = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=2**31 - 1,
        help="Most tokens of prompt and text together. (default: the model's, at most 32768)",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
Kv = Annotated[
    str | None,
    typer.Option(
        help="Element type of the KV cache: f32, f16 or bf16. (default: f16, but f32 where the weights are)",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
Backend = Annotated[str, typer.Option(help="cpu, or reference (numpy, slow).", rich_help_panel=ENGINE)]
Spec = Annotated[
    str | None,
    typer.Option(help="An .arch file instead of the shipped one, or a shipped one's name.", rich_help_panel=ENGINE),
]
Chunk = Annotated[int, typer.Option(min=1, help="Tokens a prefill step takes.", rich_help_panel=ENGINE)]

SAMPLING = "Sampling"
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="0 always takes the likeliest token; 1 samples as the model says.",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(min=0, help="Only the k likeliest tokens; 0 is all.", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Only the likeliest tokens of this total probability.", rich_help_panel=SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Only tokens this times as probable as the likeliest.", rich_help_panel=SAMPLING),
]
RepeatPenalty = Annotated[
    float | None,
    typer.Option(help="Above 1, recent tokens become less likely.", rich_help_panel=SAMPLING),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed makes the same choices.", rich_help_panel=SAMPLING)
]


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given: the rest keep their defaults, which depend on command and file."""
    return {name: value for name, value in options.items() if value is not None}


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


@app.command(
    epilog="Examples:\n\n"
    'briolette run gemma-3-270m.gguf "The capital of France is" -n 20\n\n'
    "briolette run model.gguf --file story.txt --temperature 0.8 --seed 1 --stats\n\n"
    "echo 'One, two, three,' | briolette run model.gguf --json"
)
def run(
    model: Path_,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; else --file, or standard input.")
    ] = None,
    file: Annotated[str | None, typer.Option(help="Read the prompt from a file; - is standard input.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=0, help="Most tokens to write.")] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    echo: Annotated[
        bool | None,
        typer.Option("--echo/--no-echo", help="Print the prompt too. (default: on a terminal)", show_default=False),
    ] = None,
    stats: Stats = False,
    as_json: Json = False,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repeat_penalty: RepeatPenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    context: Context = None,
    kv: Kv = None,
    chunk: Chunk = 256,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Continues a text, word by word as it comes."""
    from .commands import generate

    generate.run(
        model,
        generate.prompt_text(prompt, file),
        {"threads": threads, "context": context, "kv": kv, "chunk": chunk, "backend": backend, "spec": spec},
        _given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
        ),
        max_tokens=max_tokens,
        stop=stop or [],
        echo=sys.stdout.isatty() if echo is None else echo,
        stats=stats,
        as_json=as_json,
    )


@app.command(
    epilog="Examples:\n\n"
    'briolette chat smollm2.gguf --system "Answer in one sentence."\n\n'
    'briolette chat smollm2.gguf --message "Capital of France?" --message "And of Spain?" --temperature 0'
)
def chat(
    model: Path_,
    message: Annotated[
        list[str] | None,
        typer.Option("--message", "-m", help="Ask this and leave; given several times, one turn each."),
    ] = None,
    system: Annotated[str, typer.Option(help="The system prompt.")] = "",
    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think",
            help="Thinking on or off, for templates with such a switch. (default: the template's)",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            min=0,
            help="Most tokens of a reply. (default: the context)",
            show_default=False,
        ),
    ] = None,
    stats: Stats = False,
    as_json: Json = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repeat_penalty: RepeatPenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    context: Context = None,
    kv: Kv = None,
    chunk: Chunk = 256,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Talks with a model through the chat template in its file.

    Sampling is what the file recommends (general.sampling.*), else temperature 0.7, top-k 40, top-p 0.95,
    min-p 0.05. Standard input that is no terminal is read as one message a line.
    """
    from .commands import generate

    generate.chat(
        model,
        {"threads": threads, "context": context, "kv": kv, "chunk": chunk, "backend": backend, "spec": spec},
        _given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
        ),
        system=system,
        think=think,
        max_tokens=max_tokens,
        messages=message or [],
        stats=stats,
        as_json=as_json,
    )


@app.command(
    epilog="Examples:\n\n"
    "briolette inspect model.gguf\n\n"
    "briolette inspect model.gguf --context 4096 --kv f16 --json\n\n"
    "briolette inspect model.gguf --tensors --keys"
)
def inspect(
    model: Path_,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List the metadata; long arrays are shortened.")] = False,
    as_json: Json = False,
    context: Context = None,
    kv: Kv = None,
    chunk: Chunk = 256,
    spec: Spec = None,
) -> None:
    """Tells what a model file holds: architecture, kinds of layers, tensors, tokenizer, memory."""
    from .commands.inspect import inspect as command

    options = {"spec": spec, "kv": kv, "context": context, "chunk": chunk}
    command(model, tensors, keys, as_json, options)


@app.command(
    epilog="Examples:\n\n"
    "briolette show model.gguf\n\n"
    "briolette show model.gguf --stage fused --form decode\n\n"
    "briolette show model.gguf --block attention.local\n\n"
    "briolette show model.gguf --stats"
)
def show(
    model: Path_,
    stage: Annotated[
        str,
        typer.Option(help="elaborated, unrolled, bound, simplified, head, angles, cache or fused."),
    ] = "elaborated",
    form: Annotated[
        str,
        typer.Option(help="decode (one token), prefill (many, the last one's logits) or all (all logits)."),
    ] = "decode",
    block: Annotated[str | None, typer.Option(help="Only this block, or main.")] = None,
    full: Annotated[bool, typer.Option("--full", help="With the table of tensors.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Instead: nodes, seconds and rule hits of each stage.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Instead: the plan of the activations' memory.")] = False,
    as_json: Json = False,
    context: Context = None,
    kv: Kv = None,
    chunk: Chunk = 256,
    spec: Spec = None,
) -> None:
    """Prints the program that an architecture becomes, after any stage of the compiler."""
    from .commands.show import show as command

    options = {"spec": spec, "kv": kv, "context": context, "chunk": chunk}
    command(model, stage, form, block, full, stats, plan, as_json, options)


@app.command(
    epilog="Examples:\n\nbriolette fmt my.arch\n\nbriolette fmt --check spec/*.arch\n\nbriolette fmt --diff my.arch"
)
def fmt(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help=".arch files; - is standard input.")],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 if a file would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; print what would change.")] = False,
) -> None:
    """Brings architecture files into their one canonical layout."""
    from .commands.files import fmt as command

    raise typer.Exit(command(files, check, diff))


@app.command(epilog="Examples:\n\nbriolette specs\n\nbriolette specs --json")
def specs(as_json: Json = False) -> None:
    """Lists the architectures that come with briolette."""
    from .commands.files import specs as command

    command(as_json)


def main() -> None:
    """The entry point of the command line."""
    app(prog_name="briolette")
