"""The context: where programs and threads find what an engine gives them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    offset: int
    pointer: bool = False


# The context: one per engine. Counters that threads write to have cache lines of their own.
FIELDS = {
    "tokens": Field(0, True),  # i32[rows]
    "positions": Field(8, True),  # i32[rows]
    "rows": Field(16),
    "arena": Field(24, True),
    "weights": Field(32, True),  # pointers, in the order of the program's layout
    "planes": Field(40, True),  # pointers to cache planes
    "capacities": Field(48, True),  # i64: positions each plane has room for
    "out": Field(56, True),  # f32[rows or 1, vocabulary]
    "scratch": Field(64, True),  # what all threads use, then what each has for itself
    "scratch_stride": Field(72),  # bytes between the scratch of two threads
    "threads": Field(80),
    "entry": Field(88, True),  # the program that this generation runs
    "profile": Field(96, True),  # i64: slots of time, see profile.py; of profiled programs alone
    "slots": Field(104, True),  # i32[rows]: the sequence that each row belongs to, as a part of the planes
    "likeliest": Field(112),  # how many of the largest logits are wanted; without them `out` may be none
    "arrived": Field(128),
    "barrier": Field(192),  # counts barriers passed
    "generation": Field(256),  # counts steps started
}
CONTEXT_BYTES = 320
OF_OTHERS = ("barrier", "generation", "entry", "profile")  # fields that ordinary programs do not read
