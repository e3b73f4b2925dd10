"""How `run` and `chat` are called."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .app import app
from .options import (
    Backend,
    Chunk,
    Context,
    GatedPrefill,
    Json,
    Kv,
    MinP,
    Path_,
    RepeatPenalty,
    Seed,
    Spec,
    Stats,
    Temperature,
    Threads,
    TopK,
    TopP,
    Weights,
    given,
)


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
    weights: Weights = None,
    prefill: GatedPrefill = None,
    chunk: Chunk = 256,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Continues a text, word by word as it comes."""
    from ..commands import generate

    generate.run(
        model,
        generate.prompt_text(prompt, file),
        {
            "threads": threads,
            "context": context,
            "kv": kv,
            "chunk": chunk,
            "weights": weights,
            "prefill": prefill,
            "backend": backend,
            "spec": spec,
        },
        given(
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
    weights: Weights = None,
    prefill: GatedPrefill = None,
    chunk: Chunk = 256,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Talks with a model through the chat template in its file.

    Sampling is what the file recommends (general.sampling.*), else temperature 0.7, top-k 40, top-p 0.95,
    min-p 0.05. Standard input that is no terminal is read as one message a line.
    """
    from ..commands import generate

    generate.chat(
        model,
        {
            "threads": threads,
            "context": context,
            "kv": kv,
            "chunk": chunk,
            "weights": weights,
            "prefill": prefill,
            "backend": backend,
            "spec": spec,
        },
        given(
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
