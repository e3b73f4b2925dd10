"""How `eval` is called, with what it measures as a second word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .options import ENGINE, Backend, Chunk, Json, Kvs, Path_, Prefill, Spec, Threads, Weights

BESIDE = "Beside ours"

evaluate = typer.Typer(
    no_args_is_help=True,
    epilog="Examples:\n\n"
    "briolette eval ppl model.gguf --text wiki.txt\n\n"
    "briolette eval kld model.gguf --text wiki.txt --kv bf16 --chunks 16",
    help="Measures quality: perplexity, divergence from a baseline, and what is found again in a long text.",
)
app.add_typer(evaluate, name="eval")

Text = Annotated[str, typer.Option(metavar="FILE", help="The text to read; - is standard input.", show_default=False)]
Ctx = Annotated[int, typer.Option("--ctx", min=4, help="Tokens of a window; its second half is scored.")]
Chunks = Annotated[
    int | None, typer.Option(min=1, help="Windows to read. (default: all of the text)", show_default=False)
]
PeerName = Annotated[
    str | None,
    typer.Option("--peer", help="Read the same windows with another engine: llama.cpp.", rich_help_panel=BESIDE),
]
PeerPython = Annotated[
    str,
    typer.Option(metavar="PATH", help="The Python that has it; `make peers` makes this one.", rich_help_panel=BESIDE),
]
PeerKv = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TYPE",
        help="Its cache's type, or one for K and one for V, such as q8_0/q4_0; several times for several rows.",
        rich_help_panel=BESIDE,
        show_default=False,
    ),
]
PEER_PYTHON = ".venv-peers/bin/python"


@evaluate.command(
    epilog="Examples:\n\n"
    "briolette eval ppl model.gguf --text wiki.txt\n\n"
    "briolette eval ppl model.gguf --text wiki.txt --ctx 2048 --chunks 20 --kv f32 --kv bf16\n\n"
    "briolette eval ppl model.gguf --text wiki.txt --peer llama.cpp --json"
)
def ppl(
    model: Path_,
    text: Text,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    kv: Kvs = None,
    peer: PeerName = None,
    peer_python: PeerPython = PEER_PYTHON,
    peer_kv: PeerKv = None,
    as_json: Json = False,
    threads: Threads = None,
    weights: Weights = None,
    prefill: Prefill = "exact",
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Measures perplexity, on the windows of llama.cpp's `perplexity`."""
    from ..commands.evaluate import ppl as command

    settings = {"kv": kv, "weights": weights, "prefill": prefill}
    options = {"threads": threads, "backend": backend, "spec": spec}
    command(model, text, ctx, chunks, settings, options, (peer, Path(peer_python), peer_kv), as_json)


@evaluate.command(
    epilog="Examples:\n\n"
    "briolette eval kld model.gguf --text wiki.txt --kv f16 --kv bf16 --chunks 16\n\n"
    "briolette eval kld model.gguf --text wiki.txt --kv f32 --prefill fast\n\n"
    "briolette eval kld model.gguf --text wiki.txt --peer llama.cpp --peer-kv q8_0 --peer-kv q4_0 --json"
)
def kld(
    model: Path_,
    text: Text,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    kv: Kvs = None,
    base_kv: Annotated[str, typer.Option(metavar="KV", help="How the baseline keeps its KV cache.")] = "f32",
    peer: PeerName = None,
    peer_python: PeerPython = PEER_PYTHON,
    peer_kv: PeerKv = None,
    as_json: Json = False,
    threads: Threads = None,
    weights: Weights = None,
    prefill: Prefill = "exact",
    base_weights: Annotated[
        str | None,
        typer.Option(help="The baseline's --weights. (default: --weights)", rich_help_panel=ENGINE, show_default=False),
    ] = None,
    base_prefill: Annotated[str, typer.Option(help="The baseline's --prefill.", rich_help_panel=ENGINE)] = "exact",
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Measures how far predictions are from those with an exact KV cache."""
    from ..commands.evaluate import kld as command

    settings = {"kv": kv, "weights": weights, "prefill": prefill}
    base = {"kv": base_kv, "weights": base_weights or weights, "prefill": base_prefill}
    options = {"threads": threads, "backend": backend, "spec": spec}
    command(model, text, ctx, chunks, settings, base, options, (peer, Path(peer_python), peer_kv), as_json)


@evaluate.command(
    epilog="Examples:\n\n"
    "briolette eval needle model.gguf --text wiki.txt --kv bf16 --kv balanced\n\n"
    "briolette eval needle model.gguf --text wiki.txt --lengths 1024,4096,16384 --depths 0,25,50,75,100 --json"
)
def needle(
    model: Path_,
    text: Annotated[
        str,
        typer.Option(metavar="FILE", help="The text to hide words in; - is standard input.", show_default=False),
    ],
    lengths: Annotated[list[str], typer.Option(metavar="LIST", help="Tokens of a text, with the question.")] = [  # noqa: B006
        "1024,4096"
    ],
    depths: Annotated[
        list[str], typer.Option(metavar="LIST", help="Where words are hidden, in per cent of a text.")
    ] = ["0,25,50,75,100"],  # noqa: B006
    trials: Annotated[int, typer.Option(min=1, help="Texts of each length, with other words.")] = 8,
    kv: Kvs = None,
    as_json: Json = False,
    threads: Threads = None,
    weights: Weights = None,
    prefill: Prefill = "exact",
    chunk: Chunk = 256,
    backend: Backend = "cpu",
    spec: Spec = None,
) -> None:
    """Measures whether words that are hidden in a long text are found again, with each of several KV caches."""
    from ..commands.needle import needle as command

    settings = {"kv": kv, "weights": weights, "prefill": prefill}
    options = {"threads": threads, "chunk": chunk, "backend": backend, "spec": spec}
    command(model, text, lengths, depths, trials, settings, options, as_json)


@evaluate.command(
    epilog="Examples:\n\n"
    "briolette eval prefill model.gguf --text wiki.txt\n\n"
    "briolette eval prefill model.gguf --text wiki.txt --chunks 16 --json"
)
def prefill(
    model: Path_,
    text: Text,
    ctx: Ctx = 512,
    chunks: Annotated[int, typer.Option(min=1, help="Windows to read.")] = 4,
    as_json: Json = False,
    threads: Threads = None,
    spec: Spec = None,
) -> None:
    """Measures what a fast prefill costs; where it is little, `run`, `chat` and `load` take it from then on."""
    from ..commands.gate import prefill as command

    command(model, text, ctx, chunks, {"threads": threads, "spec": spec}, as_json)
