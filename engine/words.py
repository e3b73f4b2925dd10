"""How numbers are written for people, and read from them: the same in every command and on every page.

Values of a spec are written as `compiler.text.plain` has them.
"""

from __future__ import annotations

from briolette.compiler.errors import BrioletteError


def size(count: float) -> str:
    """Bytes for people."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 2)):
        if count < 1024:
            return f"{count:.{digits}f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def short_count(number: int) -> str:
    """How many, in three digits or so: `268.1 M`."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def ids_of(text: str, option: str) -> list[int]:
    """Token ids as `option` takes them, such as 2,5,9. Raises BrioletteError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BrioletteError(f"{option} takes numbers with commas between them, such as 2,5,9, not {text!r}") from None


def many(number: int, what: str) -> str:
    """A number with what it counts: `1 token`, `2 tokens`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
