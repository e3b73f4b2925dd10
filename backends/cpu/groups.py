"""The programs of an engine: which are compiled together, and how many tokens a step of each takes."""

from __future__ import annotations

from ..base import ALL_LOGITS_CHUNK, Options

# Decoding and prefill share kernels and are both wanted by any generation; every token's logits are wanted by
# evaluation, and of several sequences at once.
GROUPS = {"generate": ("decode", "prefill"), "evaluate": ("all",), "few": ("few",), "batch": ("batch",)}
GROUP_OF = {program: group for group, programs in GROUPS.items() for program in programs}
SMALL_BATCH = (
    4  # tokens that "few" takes; "batch", whose products are made of more rows at a time, takes longer for them
)


def batched(rows: int) -> str:
    """The program for so many tokens, more than one, of several sequences."""
    return "few" if rows <= SMALL_BATCH else "batch"


def rows_of(name: str, options: Options) -> int:
    """Tokens that a step of a program takes at most."""
    known = {"decode": 1, "few": SMALL_BATCH, "prefill": options.chunk}
    return known.get(name, min(ALL_LOGITS_CHUNK, options.chunk))
