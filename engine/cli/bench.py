"""How `bench` is called."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from briolette.spec.errors import BrioletteError

from .app import app
from .options import Backend, Chunk, Context, Json, Kvs, Spec, Weights

SIZES = ", ".join(sorted(p.name.removesuffix(".json") for p in (files("briolette.spec") / "sizes").iterdir()))
WHAT = "What is measured"


def _list(name: str, help: str, *more: str) -> typer.models.OptionInfo:
    """An option that takes numbers with commas between them, and may be given several times."""
    return typer.Option(name, *more, metavar="LIST", help=help, rich_help_panel=WHAT)


@app.command(
    epilog="Examples:\n\n"
    "briolette bench model.gguf\n\n"
    "briolette bench model.gguf --prompt 512 --generate 64 --depth 0,4096 --threads 1,2\n\n"
    "briolette bench model.gguf --prompt 0 --profile\n\n"
    "briolette bench model.gguf --prompt 0 --sequences 1,2,4,8,16\n\n"
    "briolette bench model.gguf --depth 0,4096 --peer llama.cpp\n\n"
    "briolette bench model.gguf --depth 16384 --kv f16 --kv balanced --peer llama.cpp --peer-kv f16 --peer-kv q8_0\n\n"
    "briolette bench --synthetic gemma4-e2b\n\n"
    "briolette bench model.gguf --prefill exact,fast --json\n\n"
    "briolette bench model.gguf --backend cuda --depth 0,32768 --kv balanced --profile"
)
def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A GGUF file, or any part of a split one.")
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:LAYERS]",
            help=f"No file, but random weights in the sizes of a model: {SIZES}. With :LAYERS, of so many layers.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[list[str], _list("--prompt", "Tokens of a prompt; 0 leaves prompts out.", "-p")] = ["512"],  # noqa: B006
    generate: Annotated[list[str], _list("--generate", "Tokens made one by one; 0 leaves them out.", "-n")] = ["64"],  # noqa: B006
    depth: Annotated[list[str], _list("--depth", "Positions already in the cache, filled by a prefill.", "-d")] = ["0"],  # noqa: B006
    sequences: Annotated[
        list[str],
        _list("--sequences", "Sequences decoded side by side, a token of each a step; speeds are of all.", "-s"),
    ] = ["1"],  # noqa: B006
    threads: Annotated[
        list[str] | None,
        typer.Option(metavar="LIST", help="Threads. (default: one a core)", rich_help_panel=WHAT, show_default=False),
    ] = None,
    prefill: Annotated[
        list[str], _list("--prefill", "With packed weights, the activations of a prompt: exact, fast.")
    ] = ["exact"],  # noqa: B006
    logits: Annotated[list[str], _list("--logits", "Of a prompt, those that are wanted: last, all.")] = ["last"],  # noqa: B006
    repetitions: Annotated[
        int,
        typer.Option("--repetitions", "-r", min=1, help="Runs that count, after one to warm up.", rich_help_panel=WHAT),
    ] = 5,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell where the time goes, kernel by kernel.", rich_help_panel=WHAT)
    ] = False,
    peer: Annotated[
        str | None,
        typer.Option(
            help="Measure another engine in turns with ours: llama.cpp.", rich_help_panel=WHAT, show_default=False
        ),
    ] = None,
    peer_python: Annotated[
        str,
        typer.Option(metavar="PATH", help="The Python that has it; `make peers` makes this one.", rich_help_panel=WHAT),
    ] = ".venv-peers/bin/python",
    peer_kv: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Its cache's type, or one for K and one for V, such as q8_0/q4_0; several times for several. "
            "(default: the types of ours, f16 for policies)",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    backend: Backend = "cpu",
    kv: Kvs = None,
    context: Context = None,
    weights: Weights = None,
    chunk: Chunk = 256,
    spec: Spec = None,
) -> None:
    """Measures prefill and decode, beside what this machine could do at most."""
    from ..bench.wanted import Wanted
    from ..commands.bench import bench as command
    from ..commands.bench import bench_on_device

    if backend == "cuda":
        if threads or peer is not None or context is not None or len(kv or []) > 1:
            raise BrioletteError(
                "--threads, --peer, --ctx and several --kv are of measurements on the CPU: leave them out, or --backend"
            )
        given = {"kv": kv[0] if kv else None, "weights": weights, "chunk": chunk, "spec": spec}
        numbers = Wanted.read(prompt, generate, depth, ["1"], prefill, logits, repetitions, sequences=sequences)
        return bench_on_device(model, synthetic, numbers, given, profile, as_json)
    if backend != "cpu":
        raise BrioletteError(f"bench measures the backends cpu and cuda, not {backend}")
    command(
        model,
        synthetic,
        Wanted.read(prompt, generate, depth, threads, prefill, logits, repetitions, kv, context, sequences),
        {"weights": weights, "chunk": chunk, "spec": spec},
        profile,
        (peer, Path(peer_python), tuple(dict.fromkeys(peer_kv or []))),
        as_json,
    )
