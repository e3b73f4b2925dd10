"""Nothing in a file may go unread by accident: silent wrong output is the worst bug of this field."""

from __future__ import annotations

import difflib
import re
from collections import Counter

from briolette.spec import tree as ast
from briolette.spec.errors import Span, SpecError
from briolette.spec.tree import walk

from .header import Header
from .values import bare


def check_keys(tree: ast.Architecture, header: Header) -> None:
    """Every metadata key of the architecture must be mentioned in the spec."""
    prefix = f"{tree.name}."
    mentioned = {key.text: key.span for key in walk(tree) if isinstance(key, ast.Key)}
    ours = [k.removeprefix(prefix) for k in header.metadata if k.startswith(prefix)]
    unread = [key for key in ours if key not in mentioned]
    if unread:
        names = [prefix + key for key in unread]
        section = {key: span for key, span in mentioned.items() if _section(key) == _section(unread[0])}
        ignores = [line.span for line in tree.of(ast.IgnoreKeys)]
        span, near = _nearest(unread[0], section, (*ignores, tree.span)[0])
        hint = f'{near}read the key in the spec, or write: ignore "{unread[0]}"'
        raise SpecError(_unread("key", names, header), span, tree.source, hint)


def check_tensors(tree: ast.Architecture, header: Header, known: set[str]) -> None:
    """Every tensor of the file must be read, or ignored by name."""
    unread = [name for name in header.tensors if name not in known]
    if unread:
        counts = Counter(re.sub(r"^blk\.\d+", "blk.{i}", name) for name in unread)
        names = [f"{name} ({count} layers)" if count > 1 else name for name, count in counts.items()]
        names = unread if len(unread) == 1 else names
        mentioned = {n.text: n.span for n in walk(tree) if isinstance(n, ast.Name)}
        name = bare(unread[0])
        span, near = _nearest(name, mentioned, _home(tree, layer=unread[0].startswith("blk.")))
        hint = f"{near}use `{name}` where it belongs, or write in a block: ignore {name}"
        raise SpecError(_unread("tensor", names, header), span, tree.source, hint)


def _unread(what: str, names: list[str], header: Header) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    plural = "s" * (len(names) > 1)
    return f"{header.source}: nothing reads the {what}{plural} {shown}"


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _home(tree: ast.Architecture, layer: bool) -> Span:
    """Where the tensors of layers, or those outside them, belong."""
    blocks = [block.span for block in tree.of(ast.Block) if block.prefix] if layer else []
    return (*blocks, *(model.span for model in tree.of(ast.Model)), tree.span)[0]


def _nearest(wanted: str, places: dict[str, Span], otherwise: Span) -> tuple[Span, str]:
    """The spec's line that is most like it, and a hint that says so."""
    near = difflib.get_close_matches(wanted, list(places), 1, 0.6)
    return (places[near[0]], f"the nearest is `{near[0]}`; ") if near else (otherwise, "")
