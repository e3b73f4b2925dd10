"""Why a text does not parse, said so that a person can mend it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from lark import Lark, Token, UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.lexer import PatternStr

from .errors import Span, SpecError

_DECLARES = ("param", "let", "dim", "ignore", "require", "kind", "block", "model")
_STATES = ("if", "for", "ignore", "return")
_PAIRS = {"}": "{", ")": "(", "]": "["}
_CLOSER = {opener: closer for closer, opener in _PAIRS.items()}
# What the lexer finds and the words a person knows it by.
_NAMES = {
    "_NL": "the end of the line",
    "NAME": "a name",
    "NUMBER": "a number",
    "KEY": 'a "key"',
    "TEXT": "a 'text'",
}
_VALUE = frozenset({"NUMBER", "KEY", "TEXT", "NONE", "TRUE", "FALSE", "NAME", "KIND", "LAST", "LPAR", "MINUS", "NOT"})
_OPERATOR = frozenset({"PLUS", "MINUS", "TIMES", "POW", "CMP", "LESS", "AND", "OR", "PIPE", "IF", "WHEN"})
_AFTER_VALUE = frozenset({"DOT", "LPAR", "LSQB", "COLON", "SEMICOLON", "RBRACE", "EQUAL"})
_FOREIGN = {
    "&": "write `and`",
    "|": "write `or` between conditions, `|>` to pass a value on",
    "!": "write `not`",
    "^": "a power is written `**`",
    "“": 'use the plain quote `"`',
    "”": 'use the plain quote `"`',
    "\u2018": "use the plain quote `'`",
    "\u2019": "use the plain quote `'`",
    "\u2212": "use the plain minus `-`",
    "÷": "write `/`",
    "\u00d7": "write `*`",
    "→": "write `->`",
    "←": "write `<-`",
    "\xa0": "it is a no-break space; use an ordinary one",
}


def explain(error: UnexpectedInput, text: str, file: str, parser: Lark) -> SpecError:
    """The SpecError for what lark found."""
    if isinstance(error, UnexpectedCharacters):
        return _character(error, text, file)
    token = error.token if isinstance(error, UnexpectedToken) else Token("$END", "")
    found = _Found(token, text, file, parser, error)
    return _bracket(found) or found.spelling() or found.error(*_reason(found))


def _character(error: UnexpectedCharacters, text: str, file: str) -> SpecError:
    pos = error.pos_in_stream or 0
    char = text[pos]
    span = Span(error.line, error.column, error.line, error.column + 1, file)
    if char in "\"'":
        end = error.column + len(text[pos:].split("\n", 1)[0])
        span = Span(error.line, error.column, error.line, end, file)
        what = "key" if char == '"' else "text"
        return SpecError(f"this {what} has no closing `{char}`", span, text, f"a {what} ends on its own line")
    shown = f"`{char}`" if char.isprintable() else repr(char)
    hint = "names are written with the letters A to Z" if char.isalpha() else "remove it"
    return SpecError(f"{shown} is no part of the language", span, text, _FOREIGN.get(char, hint))


class _Found:
    """The token that does not fit, and its surroundings."""

    def __init__(self, token: Token, text: str, file: str, parser: Lark, error: UnexpectedInput):
        self.token, self.text, self.file, self.parser = token, text, file, parser
        self.accepts = frozenset(getattr(error, "accepts", None) or getattr(error, "expected", None) or ())
        self.at_end = token.type == "$END"
        # The newline before `$END` is synthetic; what a person sees is the end of the file.
        self.pos = len(text) if self.at_end else token.start_pos or 0
        self.before = self._tokens_before()

    def _tokens_before(self) -> list[Token]:
        """The statement's tokens before this one."""
        statement: list[Token] = []
        for token in self.parser.lex(self.text):
            if (token.start_pos or 0) >= self.pos and not self.at_end:
                break
            if token.type in ("_NL", "LBRACE", "SEMICOLON"):
                statement.clear()
            else:
                statement.append(token)
        return statement

    @property
    def previous(self) -> str:
        return self.before[-1].type if self.before else ""

    @property
    def shown(self) -> str:
        if self.at_end:
            return "the end of the file"
        return "the end of the line" if self.token.type == "_NL" else f"`{self.token}`"

    def spelling(self) -> SpecError | None:
        """The error where other languages' signs are used."""
        for wrong, hint in _SPELLINGS.items():
            if self.text.startswith(wrong, self.pos):
                return self.error(f"`{wrong}` is no part of the language", hint, width=len(wrong))
        return None

    def error(self, message: str, hint: str = "", token: Token | None = None, width: int = 0) -> SpecError:
        token = token or self.token
        line, col = token.line or 1, token.column or 1
        width = width or (1 if token.type in ("$END", "_NL") else len(token))
        return SpecError(message, Span(line, col, line, col + width, self.file), self.text, hint)

    def expected(self) -> str:
        """What could stand here instead."""
        left = set(self.accepts)
        words: list[str] = []
        if len(left & _VALUE) > 5:
            words.append("a value")
            left -= _VALUE
        elif "PLUS" in left:
            # Without pipes around, a `:` is no annotation but what the form needs.
            left -= _OPERATOR | _AFTER_VALUE - ({"COLON"} if "PIPE" not in left else set())
            words.append("an operator")
        elif left - _OPERATOR:
            left -= _OPERATOR
        spelled = {t.name: t.pattern.value for t in self.parser.terminals if isinstance(t.pattern, PatternStr)}
        others = [_NAMES.get(n) or f"`{spelled.get(n, n)}`" for n in sorted(left) if n != "$END"]
        words = others + words
        return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _reason(at: _Found) -> tuple[str, str] | tuple[str, str, Token]:
    """Message and hint: first the mistakes that have a name."""
    token, accepts, shown = at.token, at.accepts, at.shown
    word = str(token)
    if "ARCH" in accepts:
        if at.at_end:
            return "there is nothing in this file", "an architecture file starts with `arch NAME`"
        return f"a file starts with `arch NAME`, not with {shown}", ""
    if "PARAM" in accepts:  # between declarations
        if word == "arch":
            return "a second `arch`", "one file describes one architecture"
        near = difflib.get_close_matches(word, _DECLARES, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"declarations start with {', '.join(_DECLARES)}"
        return f"{shown} starts no declaration", hint
    if "ARROW" in accepts:
        return f"expected `->` and the shape of the result, found {shown}", "such as `-> [T, D]`"
    if at.previous == "IGNORE" and token.type == "NAME":
        return (
            "outside blocks `ignore` takes metadata keys",
            f'write "{word}" if it is a key; ignore tensors in a block',
        )
    if at.previous == "IGNORE" and token.type == "KEY":
        return "inside a block `ignore` takes tensors, without quotes", "keys are ignored outside blocks"
    if "KEY" in accepts and token.type == "TEXT" and "TEXT" not in accepts:
        return "a key stands in double quotes", f'write "{word[1:-1]}"'
    if accepts == {"TEXT"} and token.type == "KEY":
        return "the reason stands in single quotes", f"write '{word[1:-1]}'"
    if accepts == {"TEXT"}:
        return (
            f"expected the reason, found {shown}",
            "such as `require experts == 0, 'mixtures are not described here'`",
        )
    if "OTHERWISE" in accepts:
        return f"expected `when CONDITION` or `otherwise`, found {shown}", "the last kind is `otherwise`"
    if at.previous == "PIPE" or (accepts == {"LPAR"} and len(at.before) > 1 and at.before[-2].type == "PIPE"):
        return f"`|>` is followed by a call, not by {shown}", "such as `|> rms(attn_norm)` or `|> softmax()`"
    if accepts >= {"EQUAL", "LSQB"} and len(at.before) == 1:
        return _no_statement(at)
    if "RETURN" in accepts:
        return _no_statement(at)
    if token.type == "EQUAL" and "PLUS" in accepts:
        return "`=` gives a name its value", "to compare, write `==`"
    if token.type in ("CMP", "LESS") and "PLUS" in accepts:
        return "comparisons do not chain", "write `a < b and b < c`"
    if at.previous == "ELSE" and token.type == "IF":
        return "there is no `else if`", "put an `if` inside: `else { if CONDITION { … } }`"
    if _reserved(at) and "NAME" in accepts:
        return f"`{token}` is a word of the language and cannot be a name", "choose another name"
    return f"expected {at.expected()}, found {shown}", ""


_SPELLINGS = {
    ":=": "a name gets its value with `=`",
    "=>": "write `->` before the shape of a result, `>=` to compare",
    "=<": "write `<=`",
    "+=": "write `x = x + …`",
    "-=": "write `x = x - …`",
    "*=": "write `x = x * …`",
    "/=": "write `x = x / …`",
    "||": "write `or`",
}


def _reserved(at: _Found) -> bool:
    return at.token.type not in ("NAME", "_NL") and re.fullmatch(r"[a-z]+", str(at.token)) is not None


def _no_statement(at: _Found) -> tuple[str, str] | tuple[str, str, Token]:
    if not at.before:
        if str(at.token) in _DECLARES:
            return (
                f"`{at.token}` stands outside blocks only",
                "inside a block, a name gets its value with `x = …`",
            )
        if at.token.type == "ELSE":
            return "this `else` belongs to no `if`", ""
        if _reserved(at):
            return f"`{at.token}` is a word of the language and cannot be a name", "choose another name"
        return f"expected a statement, found {at.shown}", "such as `x = …` or `return …`"
    first = at.before[0]
    if at.token.type in ("LPAR", "PIPE", "DOT"):
        return "this value goes nowhere", "give it a name, `y = …`, or return it", first
    near = difflib.get_close_matches(str(first), _STATES, 1, 0.7)
    if near:
        return f"`{first}` starts no statement", f"did you mean `{near[0]}`?", first
    return f"expected `=` after `{first}`, found {at.shown}", ""


# --- brackets -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Open:
    char: str
    pos: int
    line: int
    col: int
    indent: int  # of its line


def _bracket(at: _Found) -> SpecError | None:
    """The error where a bracket is missing or too many, and that is what disturbed the parser."""
    stack: list[_Open] = []
    suspect: _Open | None = None  # a `{` whose `}` stands under another line's indent
    line, start, fresh, indent = 1, 0, True, 0
    for match in re.finditer(r"""#[^\n]*|"[^"\n]*"|'[^'\n]*'|\w+|\n|\S""", at.text):
        piece, pos = match[0], match.start()
        if piece == "\n":
            line, start, fresh = line + 1, pos + 1, True
            continue
        if fresh:
            indent = pos - start
        here = _Open(piece, pos, line, pos - start + 1, indent)
        if piece in _CLOSER:
            stack.append(here)
        elif fresh and stack and _begins(piece, here, stack[-1]):
            return _unclosed(at, suspect or stack[-1], here)
        elif piece in _PAIRS:
            top = stack[-1] if stack else None
            if top is None or (top.char == "{" and piece != "}"):
                return _extra(at, here, None)
            if top.char != _PAIRS[piece]:
                return _unclosed(at, top, here) if piece == "}" else _extra(at, here, top)
            if piece == "}" and fresh and top.line < line and top.indent != indent:
                suspect = suspect or top
            stack.pop()
        fresh = fresh and piece.startswith("#")
    return _unclosed(at, suspect or stack[-1], None) if stack else None


def _begins(word: str, here: _Open, top: _Open) -> bool:
    """Whether a word at the start of a line cannot be inside the bracket."""
    if top.char == "{":
        return here.col == 1 and (word in _DECLARES or word == "arch")
    return word in ("return", "for") or (here.col == 1 and word in (*_DECLARES, "arch"))


def _unclosed(at: _Found, opener: _Open, noticed: _Open | None) -> SpecError | None:
    # A brace disturbs the parser only where it is noticed; an open `(` hides the ends of lines at once.
    if at.pos < (opener.pos if opener.char != "{" else noticed.pos if noticed else len(at.text.rstrip())):
        return None
    span = Span(opener.line, opener.col, opener.line, opener.col + 1, at.file)
    where = f"{opener.line}:{opener.col}"
    until = f"at {noticed.line}:{noticed.col}, before `{noticed.char}`" if noticed else "at the end of the file"
    message = f"missing `{_CLOSER[opener.char]}`: opened at {where} and still open {until}"
    return SpecError(message, span, at.text)


def _extra(at: _Found, closer: _Open, top: _Open | None) -> SpecError | None:
    if at.pos < closer.pos:
        return None
    span = Span(closer.line, closer.col, closer.line, closer.col + 1, at.file)
    if top is not None:
        message = f"`{closer.char}` does not close the `{top.char}` opened at {top.line}:{top.col}"
        return SpecError(message, span, at.text, f"expected `{_CLOSER[top.char]}`")
    opener = _PAIRS[closer.char]
    return SpecError(f"`{closer.char}` closes nothing: no `{opener}` is open here", span, at.text, "remove it")
