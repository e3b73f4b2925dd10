"""How `inspect`, `show`, `fmt` and `specs` are called."""

from __future__ import annotations

from typing import Annotated

import typer

from briolette.spec.errors import BrioletteError

from .app import app
from .options import Chunk, Context, Json, Kv, Path_, Spec

KERNELS = "Kernels of a backend"


@app.command(
    epilog="Examples:\n\n"
    "briolette inspect model.gguf\n\n"
    "briolette inspect model.gguf --ctx 4096 --kv f16 --json\n\n"
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
    from ..commands.inspect import inspect as command

    options = {"spec": spec, "kv": kv, "context": context, "chunk": chunk}
    command(model, tensors, keys, as_json, options)


@app.command(
    epilog="Examples:\n\n"
    "briolette show gemma4 --block attention.local\n\n"
    "briolette show model.gguf\n\n"
    "briolette show model.gguf --stage fused --form decode\n\n"
    "briolette show model.gguf --block attention.local\n\n"
    "briolette show model.gguf --stats\n\n"
    "briolette show model.gguf --backend cuda --bandwidth 3350"
)
def show(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file; or an .arch file or a shipped one's name, in example sizes. @STAGE picks a stage, too.",
        ),
    ],
    stage: Annotated[
        str | None,
        typer.Option(
            help="elaborated, unrolled, bound, simplified, head, angles, cache, integers or fused; optimised is the "
            "last. (default: elaborated)",
            show_default=False,
        ),
    ] = None,
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
    backend: Annotated[
        str | None,
        typer.Option(
            help="cuda: instead, the kernels of a step of one token at the last position of --context, what each takes "
            "of a GPU, and the bytes that it moves. Needs no GPU.",
            rich_help_panel=KERNELS,
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        bool, typer.Option("--source", help="Instead of the table, the kernels as CUDA C++.", rich_help_panel=KERNELS)
    ] = False,
    arch: Annotated[
        int, typer.Option(help="The GPU's compute capability, times ten: 80, 89 or 90.", rich_help_panel=KERNELS)
    ] = 90,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="The GPU's memory bandwidth in GB/s: tells the least time that the bytes take.",
            rich_help_panel=KERNELS,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    context: Context = None,
    kv: Kv = None,
    chunk: Chunk = 256,
    spec: Spec = None,
) -> None:
    """Prints the program that an architecture becomes, after any stage of the compiler; or a backend's kernels."""
    options = {"spec": spec, "kv": kv, "context": context, "chunk": chunk}
    if backend is not None:
        if backend != "cuda":
            raise BrioletteError(f"--backend {backend} has no kernels to show; cuda has")
        from ..commands.kernels import kernels

        return kernels(model, options, arch, bandwidth, source, as_json)
    if source or bandwidth is not None:
        raise BrioletteError("--source and --bandwidth are about kernels: give --backend cuda, too")
    from ..commands.show import show as command

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
    from ..commands.files import fmt as command

    raise typer.Exit(command(files, check, diff))


@app.command(epilog="Examples:\n\nbriolette specs\n\nbriolette specs --json")
def specs(as_json: Json = False) -> None:
    """Lists the architectures that come with briolette."""
    from ..commands.files import specs as command

    command(as_json)
