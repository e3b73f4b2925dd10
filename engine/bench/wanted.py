"""What a benchmark is asked to measure, read from a command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from briolette.backends.base import PREFILL
from briolette.compiler.errors import BrioletteError
from briolette.compiler.policy import policy_named
from briolette.engine.model import cores

from .measure import Case

MOST_THREADS = 1024
MOST_SEQUENCES = 256  # as many as llama.cpp has at most
LOGITS = ("last", "all")


@dataclass(frozen=True)
class Wanted:
    """What is to be measured: every combination of these.

    caches: how the KV cache is kept; None is the model's default. room: positions that the caches have, beyond what
    the longest case takes; None for no more than that. sequences: how many are decoded side by side.
    """

    prompts: tuple[int, ...]
    generated: tuple[int, ...]
    depths: tuple[int, ...]
    threads: tuple[int, ...]
    prefill: tuple[str, ...]
    logits: tuple[str, ...]
    repetitions: int
    caches: tuple[str | None, ...] = (None,)
    room: int | None = None
    sequences: tuple[int, ...] = (1,)

    @staticmethod
    def read(
        prompt: Sequence[str],
        generate: Sequence[str],
        depth: Sequence[str],
        threads: Sequence[str] | None,
        prefill: Sequence[str],
        logits: Sequence[str],
        repetitions: int,
        kv: Sequence[str] | None = None,
        room: int | None = None,
        sequences: Sequence[str] = ("1",),
    ) -> Wanted:
        """From the command line. Raises BrioletteError where something in it is no number, or no choice there is."""
        wanted = Wanted(
            _numbers(prompt, "--prompt"),
            _numbers(generate, "--generate"),
            _numbers(depth, "--depth", zero=True),
            _numbers(threads, "--threads") if threads else (cores(),),
            _choices(prefill, "--prefill", PREFILL),
            _choices(logits, "--logits", LOGITS),
            repetitions,
            tuple(dict.fromkeys(kv or [None])),
            room,
            _numbers(sequences, "--sequences", zero=True),
        )
        if not wanted.prompts and not wanted.generated:
            raise BrioletteError("there is nothing to measure: --prompt and --generate are both 0")
        if not wanted.threads or max(wanted.threads) > MOST_THREADS:
            raise BrioletteError(f"--threads takes numbers from 1 to {MOST_THREADS}")
        if not 1 <= min(wanted.sequences) <= wanted.most_sequences <= MOST_SEQUENCES:
            raise BrioletteError(f"--sequences takes numbers from 1 to {MOST_SEQUENCES}, not {','.join(sequences)}")
        if wanted.most_sequences > 1 and not wanted.generated:
            raise BrioletteError("--sequences are decoded side by side, and --generate 0 leaves decoding out")
        if room is not None and room < wanted.longest:
            raise BrioletteError(
                f"a context of {room} tokens has no room for {wanted.longest}, which the deepest test takes: a larger "
                "--ctx, or less --depth"
            )
        for each in filter(None, wanted.caches):
            policy_named(each)  # raises for what is none, before anything is measured
        return wanted

    @property
    def longest(self) -> int:
        """The positions that the longest case takes."""
        return max(self.depths) + max((*self.prompts, *self.generated))

    @property
    def context(self) -> int:
        """The positions that caches have."""
        return self.longest if self.room is None else self.room

    @property
    def most_sequences(self) -> int:
        """The sequences that are decoded side by side at most."""
        return max(self.sequences)

    def engines(self) -> list[tuple[str | None, str]]:
        """The cache and the way of prefill of each engine of ours."""
        return [(kv, prefill) for kv in self.caches for prefill in self.prefill if self.cases(prefill)]

    def cases(self, prefill: str) -> list[Case]:
        """Those of an engine; of single tokens only for the first of those that differ in prefill."""
        found, first = [], prefill == self.prefill[0]
        for depth in self.depths:
            found += [Case("prefill", n, depth, logits) for logits in self.logits for n in self.prompts]
            if first:
                found += [Case("decode", n, depth, sequences=s) for n in self.generated for s in self.sequences]
        return found


def _split(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from (part.strip() for part in text.split(","))


def _numbers(texts: Sequence[str], option: str, zero: bool = False) -> tuple[int, ...]:
    """Numbers of a list option, each once; 0 is none unless it counts."""
    parts = list(_split(texts))
    if any(not part.isascii() or not part.isdecimal() or len(part) > 9 for part in parts):
        raise BrioletteError(
            f"{option} takes numbers with commas between them, such as 64,512, not {','.join(texts)!r}"
        )
    return tuple(dict.fromkeys(int(part) for part in parts if zero or int(part)))


def _choices(texts: Sequence[str], option: str, known: Sequence[str]) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(_split(texts)))
    wrong = next((part for part in parts if part not in known), None)
    if wrong is not None:
        raise BrioletteError(f"{option} takes {' or '.join(known)}, not {wrong!r}")
    return parts
