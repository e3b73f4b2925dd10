"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

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
        "--ctx",
        "--context",
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
        help="How the KV cache is kept: f32, f16, bf16; quality, balanced, compact; or a policy such as "
        "'global=k:tq6,v:tq4;local=bf16;sink=16;recent=128' (docs/kv-cache.md). (default: f16, but f32 where the "
        "weights are)",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
Kvs = Annotated[
    list[str] | None,
    typer.Option(
        "--kv",
        metavar="KV",
        help="How the KV cache is kept, as for `run`; several times for several rows. (default: as for `run`)",
        show_default=False,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="cpu; cuda (an NVIDIA GPU, through CuPy: it has run in an emulator only, not on a GPU: docs/cuda.md); "
        "or reference (numpy, slow).",
        rich_help_panel=ENGINE,
    ),
]
Spec = Annotated[
    str | None,
    typer.Option(help="An .arch file instead of the shipped one, or a shipped one's name.", rich_help_panel=ENGINE),
]
Chunk = Annotated[int, typer.Option(min=1, help="Tokens a prefill step takes.", rich_help_panel=ENGINE)]

Weights = Annotated[
    str | None,
    typer.Option(
        help="packed (the fast kernels: integers, a copy in memory), mapped (read in the file, f32), or mixed "
        "(packed, but experts mapped). (default: packed, where the processor has instructions for it; of these the "
        "first that fits into memory)",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
PREFILL = "With packed weights: exact, or fast, which rounds a prompt's activations to 8 bits."
Prefill = Annotated[str, typer.Option(help=PREFILL, rich_help_panel=ENGINE)]
GatedPrefill = Annotated[
    str | None,
    typer.Option(
        "--prefill",
        help=f"{PREFILL} (default: exact, but fast where `eval prefill` has allowed it)",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]

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


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: the rest keep their defaults, which depend on command and file."""
    return {name: value for name, value in options.items() if value is not None}
