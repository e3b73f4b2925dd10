"""Architecture text to a syntax tree (see tree.py)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

from lark import Lark, Token, UnexpectedInput
from lark.exceptions import VisitError

from .build import Builder
from .comments import attach
from .errors import BrioletteError, SpecError
from .explain import explain
from .files import example as example
from .files import read
from .files import shipped as shipped
from .files import sizes as sizes
from .tree import Architecture as Architecture


class Newlines:
    """Lexer filter: drops the newlines that do not end a statement.

    A newline that stays is placed right after the token before it, so that a statement's span ends
    with its code and not with a comment or the blank lines below.
    """

    always_accept = ("_NL",)
    OPEN, CLOSE = frozenset({"LPAR", "LSQB"}), frozenset({"RPAR", "RSQB"})
    CONTINUES = frozenset(
        {"TIMES", "POW", "PLUS", "MINUS", "CMP", "LESS", "EQUAL", "COMMA", "COLON", "IF", "ELSE", "OR"}
        | {"AND", "NOT", "WHEN", "INTO", "ARROW", "PIPE", "LBRACE", "SEMICOLON"}
    )

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        depth, ended, previous = 0, False, None
        for token in stream:
            depth += (token.type in self.OPEN) - (token.type in self.CLOSE)
            if token.type == "_NL":
                ended = ended or (previous is not None and depth <= 0 and previous.type not in self.CONTINUES)
                continue
            if previous is not None and ended and token.type not in ("PIPE", "ELSE"):
                yield _newline(previous)
            ended, previous = False, token
            yield token
        if previous is not None:
            yield _newline(previous)


def _newline(after: Token) -> Token:
    line, col = after.end_line, after.end_column
    return Token("_NL", "\n", after.end_pos, line, col, line, col, after.end_pos)


@cache
def parser() -> Lark:
    """The parser of `grammar.lark`."""
    text = (Path(__file__).parent / "grammar.lark").read_text(encoding="utf-8")
    # Positions for carets, and None where an optional part is absent.
    options = {"propagate_positions": True, "maybe_placeholders": True}
    return Lark(text, parser="lalr", lexer="basic", postlex=Newlines(), **options)


def parse(text: str, file: str = "<spec>") -> Architecture:
    """The syntax tree of one architecture. Raises `SpecError` with file, line, column and carets."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        tree: Architecture = Builder(file).transform(parser().parse(text))
    except UnexpectedInput as error:
        raise explain(error, text, file, parser()) from None
    except VisitError as error:
        if isinstance(error.orig_exc, SpecError):
            raise error.orig_exc.with_source(text) from None
        if isinstance(error.orig_exc, RecursionError):
            _too_deep(file)
        raise
    except RecursionError:
        _too_deep(file)
    return dataclasses.replace(attach(tree, text), source=text)


def _too_deep(file: str) -> NoReturn:
    raise SpecError(f"{file}: an expression is nested too deeply; give its parts names") from None


def load(path: str | Path) -> Architecture:
    """Parses an `.arch` file. Raises `SpecError` when it cannot be read or does not parse."""
    return parse(read(path), str(Path(path)))


def find(architecture: str) -> Architecture:
    """The shipped architecture of that name. Raises BrioletteError where there is none."""
    known = shipped()
    if architecture in known:
        return load(known[architecture])
    near = difflib.get_close_matches(architecture, known, 1, 0.7)
    hint = f"did you mean {near[0]}?" if near else "docs/write-an-architecture.md tells how to write one"
    names = ", ".join(known)
    raise BrioletteError(f"there is no architecture file for {architecture!r}; there are {names}\n  {hint}")
