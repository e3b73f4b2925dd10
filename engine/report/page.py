"""The shell of a page: one HTML file that needs nothing beside it. What is in it is the caller's business.

Style and script lie beside this file and are written into the page. They look only for what they find there, so
that pages of several kinds share them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path

ASSETS = Path(__file__).parent
STYLES, SCRIPTS = ("page.css", "program.css", "charts.css"), ("page.js", "program.js")

Section = tuple[str, str, str]  # id, title, HTML


def page(title: str, sections: Iterable[Section], data: object = None, controls: str = "") -> str:
    """A whole HTML document. A section without a title is the page's head and not in its menu.

    `data` is what the script finds as JSON; `controls` is HTML at the right of the menu.
    """
    sections = list(sections)
    menu = "".join(f'<a href="#{name}">{escape(words)}</a>' for name, words, _ in sections if words)
    body = "".join(
        f'<section id="{name}">{f"<h2>{escape(words)}</h2>" if words else ""}{inner}</section>\n'
        for name, words, inner in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{_read(STYLES)}</style>
</head>
<body>
<a class="skip" href="#{sections[0][0] if sections else ""}">Skip to content</a>
<header class="bar"><a class="brand" href="#top">{GEM}<b>briolette</b></a><nav>{menu}</nav>{controls}</header>
<main id="top">
{body}</main>
<script type="application/json" id="data">{embedded(data)}</script>
<script>
{_read(SCRIPTS)}</script>
</body>
</html>
"""


GEM = (
    '<svg class="gem" viewBox="0 0 20 24" aria-hidden="true">'
    '<path d="M10 1 17 12 10 23 3 12z"/><path class="facet" d="M10 1 13 12 10 23 7 12zM3 12H17"/></svg>'
)


def escape(text: object) -> str:
    """Any value as text of a page, in an attribute too."""
    return html.escape(str(text))


def embedded(value: object) -> str:
    """JSON that no HTML parser takes for the end of its script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def table(rows: Iterable[Iterable[object]], head: Iterable[object] = (), right: str = "", css: str = "") -> str:
    """An HTML table; cells that are `Html` go in as they are. `right` as in `terminal.table`."""

    def cells(row: Iterable[object], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=num' if c < len(right) and right[c] == 'r' else ''}>"
            f"{cell if isinstance(cell, Html) else escape(cell)}</{tag}>"
            for c, cell in enumerate(row)
        )

    head = list(head)
    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table class="{css}">{top}<tbody>{body}</tbody></table></div>'


class Html(str):
    """Text that is HTML already."""


def _read(names: Iterable[str]) -> str:
    return "".join((ASSETS / name).read_text(encoding="utf-8") for name in names)
