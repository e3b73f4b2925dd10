"""The tables beside the specs, `NAME.peers`: what other engines call our values, and how one is built from a GGUF.

    [transformers values]
    lm_head = main.logits                      their name = our label
    model.layers.{i}.* = blk.{i}.*:            {i} is the layer; the lines below go where the * is
      self_attn.q_proj = attn_q or attn_qkv    of several labels the first that the program has
      input of mlp.down_proj = ffn.mul.1       not the value itself: another one, found by it
      pairs(self_attn.k_proj) = attn_k         the halves of their heads, interleaved, are our pairs
      heads(self_attn.q_norm) = attn_q_norm    their heads come before the tokens

What stands before `of`, and what the sections mean, is each recorder's business. Sections named `config` are in the
language of the specs (config.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from briolette.compiler.errors import BrioletteError
from briolette.spec.errors import Span, SpecError

SECTIONS = ("transformers config", "transformers weights", "transformers values", "llama.cpp values")
CHANGES = ("pairs", "heads", "divided")  # what may be done to a value of theirs, besides adding 1
_THEIRS = re.compile(
    r"(?:(?P<change>\w+)\()?(?:(?P<word>\w+)(?: (?P<number>\d+))? of )?"
    r"(?P<name>[\w.*{}-]+)(?P<close>\))?(?P<one> \+ 1)?"
)
_OURS = re.compile(r"[\w.*{}']+")


@dataclass(frozen=True)
class Theirs:
    """A value or a parameter of theirs: `query of NAME`, `output 2 of NAME`, `pairs(NAME)`, `NAME + 1`."""

    name: str
    word: str = ""
    number: int = 0
    change: str = ""  # one of CHANGES, or "plus one"


@dataclass(frozen=True)
class Row:
    """One line: theirs, one after the other, are the first of ours that is there, its parts one after the other."""

    theirs: tuple[Theirs, ...]
    ours: tuple[tuple[str, ...], ...]
    line: int

    def at(self, layer: int) -> Row:
        """The row with a number for `{i}`."""
        number = str(layer)
        theirs = tuple(replace(one, name=one.name.replace("{i}", number)) for one in self.theirs)
        return replace(self, theirs=theirs, ours=_each(self.ours, "{i}", number))

    @property
    def layered(self) -> bool:
        return any("{i}" in one.name for one in self.theirs)


@dataclass(frozen=True)
class Table:
    """A `.peers` file: its rows by section, and the text of it, in which sections are at the lines they are at."""

    path: Path
    text: str
    rows: Mapping[str, tuple[Row, ...]]
    lines: Mapping[str, range]

    def unrolled(self, section: str, layers: int) -> Iterator[Row]:
        """The rows of a section, those of layers once for each."""
        if section not in self.lines:
            raise BrioletteError(f"{self.path} has no section [{section}]")
        for row in self.rows[section]:
            yield from (row.at(layer) for layer in range(layers)) if row.layered else (row,)

    def only(self, section: str) -> str:
        """The text with all other sections left blank, so that lines keep their numbers."""
        keep = self.lines.get(section, range(0))
        return "\n".join(line if at in keep else "" for at, line in enumerate(self.text.split("\n"), 1))

    def fail(self, message: str, line: int, hint: str = "") -> SpecError:
        text = self.text.split("\n")[line - 1]
        return SpecError(message, _span(self.path, line, text), self.text, hint)


def beside(spec: Path) -> Path:
    """Where the table of a spec is."""
    return spec.with_suffix(".peers")


def load(path: Path) -> Table:
    """Reads a table. Raises SpecError with file and line for what is no row, and BrioletteError without a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BrioletteError(f"cannot read {path}, the table of what other engines call values: {error}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Table:
    """See `load`."""
    rows: dict[str, list[Row]] = {}
    lines: dict[str, range] = {}
    table = Table(path, text, {}, {})
    section, header = "", None
    for number, line in enumerate(text.split("\n"), 1):
        content = line.split("#", 1)[0].rstrip()
        if content.startswith("["):
            section, header = _section(content, number, table), None
            if section in lines:
                raise table.fail(f"there are two sections [{section}]", number)
            rows[section], lines[section] = [], range(number + 1, number + 1)
            continue
        if content and not section:
            hint = f"the first line without # is [{SECTIONS[0]}] or another section"
            raise table.fail("this line is in no section", number, hint)
        if section:
            lines[section] = range(lines[section].start, number + 1)
        if not content or section.endswith("config"):
            continue
        if not content.startswith(" "):
            header = None
        row = _row(content.strip().removesuffix(":"), number, table)
        if content.endswith(":"):
            header = row
        elif content.startswith(" "):
            if header is None:
                raise table.fail("this line is indented below nothing", number, "above it goes `A.* = B.*:`")
            rows[section].append(_within(header, row))
        else:
            rows[section].append(row)
    return replace(table, rows={name: tuple(found) for name, found in rows.items()}, lines=lines)


def _section(content: str, number: int, table: Table) -> str:
    name = content.strip("[] ")
    if name not in SECTIONS:
        near = difflib.get_close_matches(name, SECTIONS, 1, 0.6)
        hint = f"did you mean [{near[0]}]?" if near else "there are " + ", ".join(f"[{s}]" for s in SECTIONS)
        raise table.fail(f"there is no section [{name}]", number, hint)
    return name


def _row(content: str, number: int, table: Table) -> Row:
    theirs, equals, ours = content.partition(" = ")
    if not equals:
        raise table.fail("a line is `their name = our label`", number, "with a space on both sides of the =")
    left = tuple(_theirs(item.strip(), number, table) for item in theirs.split(","))
    right = tuple(tuple(part.strip() for part in choice.split(",")) for choice in ours.split(" or "))
    for label in (label for choice in right for label in choice):
        if not _OURS.fullmatch(label):
            raise table.fail(f"`{label}` is no label", number, "such as blk.{i}.attn_q; several go with `or`")
    return Row(left, right, number)


def _theirs(item: str, number: int, table: Table) -> Theirs:
    found = _THEIRS.fullmatch(item)
    if found is None or (found["change"] is None) != (found["close"] is None):
        hint = "it is NAME, WORD of NAME, pairs(NAME) or NAME + 1"
        raise table.fail(f"`{item}` is no name of theirs", number, hint)
    if found["change"] and found["change"] not in CHANGES:
        raise table.fail(f"nothing is called `{found['change']}`", number, f"there are {', '.join(CHANGES)}")
    change = "plus one" if found["one"] else found["change"] or ""
    return Theirs(found["name"], found["word"] or "", int(found["number"] or 0), change)


def _within(header: Row, row: Row) -> Row:
    """A row with its names in place of the header's `*`."""
    outer = header.theirs[0].name
    theirs = tuple(replace(one, name=outer.replace("*", one.name)) for one in row.theirs)
    prefix = header.ours[0][0]
    # A number stands for itself: `layer_scalar = layer_output_scale.weight or 1`.
    ours = tuple(tuple(p if p.isdigit() else prefix.replace("*", p) for p in choice) for choice in row.ours)
    return Row(theirs, ours, row.line)


def _each(ours: tuple[tuple[str, ...], ...], old: str, new: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(part.replace(old, new) for part in choice) for choice in ours)


def _span(path: Path, line: int, text: str) -> Span:
    start = len(text) - len(text.lstrip()) + 1
    return Span(line, start, line, max(len(text.split("#", 1)[0].rstrip()) + 1, start + 1), str(path))


def chosen(row: Row, there: Sequence[str] | Mapping[str, object]) -> tuple[str, ...] | None:
    """The first of ours of which all parts are there (numbers always are), or None."""
    return next((c for c in row.ours if all(part in there or part.isdigit() for part in c)), None)
