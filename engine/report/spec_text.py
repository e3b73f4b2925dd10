"""An architecture's text as HTML: numbered lines in colour, each marked with the part of a step it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .page import escape

TOKEN = re.compile(
    r"(?P<c>\#.*$)|(?P<s>\"[^\"]*\"|'[^']*')|(?P<o>\|>|<-|->|\*\*|[=!<>]=)"
    r"|(?P<k>\b(?:arch|param|let|dim|ignore|require|kind|block|model|when|otherwise|if|else|for|in|return|or|and|not"
    r"|at|none|true|false)\b)"
    r"|(?P<n>\b\d[\d.]*(?:e[+-]?\d+)?\b)|(?P<f>\b[A-Za-z_]\w*(?=\())|(?P<w>\b[A-Za-z_][\w.]*)"
)


def coloured(line: str) -> str:
    """One line, its tokens in spans whose class says what they are."""
    done, at = "", 0
    for match in TOKEN.finditer(line):
        if match.lastgroup == "w":
            continue
        done += escape(line[at : match.start()]) + f'<span class="t{match.lastgroup}">{escape(match[0])}</span>'
        at = match.end()
    return done + escape(line[at:])


def spec_html(source: str, shares: Mapping[int, Mapping[str, float]], kinds: Mapping[str, int]) -> str:
    """All lines. `shares` tells for each line with ops which part of each form's bytes they move; `kinds` each
    kind's colour."""
    return "".join(
        _line(number, text, shares.get(number), kinds) for number, text in enumerate(source.rstrip("\n").split("\n"), 1)
    )


def _line(number: int, text: str, share: Mapping[str, float] | None, kinds: Mapping[str, int]) -> str:
    """A line that ops came from can be chosen; the others are only read."""
    kind = re.match(r"kind (\w+)", text)
    dot = f'<i class="dot f{kinds[kind[1]]}"></i>' if kind and kind[1] in kinds else ""
    inner = f'<span class="no">{number}</span><i class="heat"></i><code>{coloured(text)}{dot}</code>'
    if share is None:
        return f'<div class="line" data-line="{number}">{inner}</div>\n'
    parts = ";".join(f"--{form}:{value:.4f}" for form, value in share.items())
    told = ", ".join(f"{value:.1%} of the bytes of {form}" for form, value in share.items())
    return (
        f'<div class="line has" data-line="{number}" style="{parts}" role="button" tabindex="0" '
        f'aria-pressed="false" title="line {number}: {told}">{inner}</div>\n'
    )
