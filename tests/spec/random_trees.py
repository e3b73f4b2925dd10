"""Random well-formed syntax trees."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

from briolette.spec import tree as t
from briolette.spec.syntax import parser

KEYWORDS = {term.pattern.value for term in parser().terminals}
names = st.one_of(
    st.sampled_from(["x", "y", "D", "L", "i", "hd", "rms", "iffy", "not_", "lasting", "kinds", "_"]),
    st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,5}", fullmatch=True),
).filter(lambda name: name not in KEYWORDS)
plain = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\"'\n\r")
words = st.text(plain, max_size=8)
numbers = st.sampled_from(["0", "1", "30", "0.5", "1e-5", "2.5E+3", "10000"]).map(t.Number)
dotted = st.lists(names, min_size=1, max_size=3).map(".".join)
atoms = st.one_of(
    numbers,
    st.sampled_from([None, True, False]).map(t.Literal),
    words.map(t.Key),
    words.map(t.Text),
    dotted.map(t.Name),
    st.just(t.Name("kind")),
)
BINARY = ["or", "and", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "//", "%", "**"]


def _calls(inner: st.SearchStrategy[t.Expr]) -> st.SearchStrategy[t.Call]:
    named = st.lists(st.tuples(names, inner), max_size=2).map(tuple)
    return st.builds(t.Call, names, st.lists(inner, max_size=3).map(tuple), named)


def _shapes(inner: st.SearchStrategy[t.Expr]) -> st.SearchStrategy[Any]:
    return st.lists(inner, min_size=1, max_size=3).map(tuple)


def _larger(inner: st.SearchStrategy[t.Expr]) -> st.SearchStrategy[t.Expr]:
    subscripts = st.one_of(inner, st.builds(t.Range, st.none() | inner, st.none() | inner))
    return st.one_of(
        st.builds(t.Unary, st.sampled_from(["-", "not"]), inner),
        st.builds(t.Binary, st.sampled_from(BINARY), inner, inner),
        st.builds(t.Choose, inner, inner, inner),
        _calls(inner),
        st.builds(t.Chain, inner, _calls(inner)),
        st.builds(t.Annotate, inner, _shapes(inner)),
        st.builds(t.Search, names, inner, inner),
        st.builds(t.Item, inner, st.lists(subscripts, min_size=1, max_size=2).map(tuple)),
    )


expressions: st.SearchStrategy[t.Expr] = st.recursive(atoms, _larger, max_leaves=8)
shapes = _shapes(expressions)

# --- comments: as the parser spells them --------------------------------------------------------------

_tails = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\n\r")
comments = st.one_of(
    st.just("#"),
    st.builds(
        lambda marks, text: f"{marks} {text}".rstrip(),
        st.sampled_from(["#", "##"]),
        st.text(_tails, max_size=9),
    ),
)


def _tidy(lines: list[str], first: bool) -> tuple[str, ...]:
    """Blank lines never lead a body and never come in twos."""
    kept: list[str] = []
    for line in lines:
        if line or (kept[-1:] != [""] and (kept or not first)):
            kept.append(line)
    return tuple(kept)


leads = st.lists(st.just("") | comments, max_size=3)
tails = st.just("") | comments


@st.composite
def bodies(draw: Any, lines: st.SearchStrategy[t.Line]) -> t.Body:
    drawn = draw(st.lists(lines, max_size=3))
    kept = [_with(draw, line, first=place == 0) for place, line in enumerate(drawn)]
    closing = list(_tidy(draw(leads), first=not kept))
    while closing and not closing[-1]:
        closing.pop()
    return t.Body(tuple(kept), opening=draw(tails), closing=tuple(closing))


def _with(draw: Any, line: t.Line, first: bool) -> t.Line:
    return dataclasses.replace(line, lead=_tidy(draw(leads), first), tail=draw(tails))


simple = st.one_of(
    st.builds(t.Assign, names, expressions, st.none() | expressions),
    st.builds(t.Store, names, expressions, st.lists(expressions, min_size=1, max_size=2).map(tuple)),
    st.builds(t.Unread, st.lists(dotted.map(t.Name), min_size=1, max_size=3).map(tuple)),
    st.builds(t.Return, expressions),
)
statements: st.SearchStrategy[t.Line] = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(t.Branch, expressions, bodies(inner), st.none() | bodies(inner)),
        st.builds(t.Loop, names, expressions, bodies(inner)),
    ),
    max_leaves=4,
)
indices = st.none() | names
arguments = st.lists(st.builds(t.Arg, names, st.none() | shapes), max_size=3).map(tuple)
entries = st.builds(t.Entry, names, expressions)
declarations = st.one_of(
    st.builds(t.Param, names, indices, expressions),
    st.builds(t.Let, names, indices, expressions),
    st.builds(t.DimDecl, st.lists(names, min_size=1, max_size=3).map(tuple)),
    st.builds(t.IgnoreKeys, st.lists(words.map(t.Key), min_size=1, max_size=3).map(tuple)),
    st.builds(t.Require, expressions, words),
    st.builds(t.Kind, names, st.none() | expressions, bodies(entries)),
    st.builds(t.Block, names, arguments, shapes, st.none() | words, bodies(statements)),
    st.builds(t.Model, arguments, shapes, bodies(statements)),
)


@st.composite
def architectures(draw: Any) -> t.Architecture:
    name = draw(names)
    body = draw(bodies(declarations))
    first = _with(draw, t.Arch(name), first=True)
    return t.Architecture(name, (first, *body.lines), body.closing)
