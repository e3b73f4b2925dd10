"""Nothing in a file may go unread by accident: silent wrong output is the worst bug of this field."""

from __future__ import annotations

import difflib
import re

from briolette.spec import tree as ast
from briolette.spec.errors import Span, SpecError
from briolette.spec.tree import walk

from .header import Header


def check_keys(tree: ast.Architecture, header: Header) -> None:
    """Every metadata key of the architecture must be mentioned in the spec."""
    prefix = f"{tree.name}."
    mentioned = {key.text: key.span for key in walk(tree) if isinstance(key, ast.Key)}
    ours = [k.removeprefix(prefix) for k in header.metadata if k.startswith(prefix)]
    unread = [key for key in ours if key not in mentioned]
    if unread:
        names = ", ".join(prefix + key for key in unread[:5]) + (" …" if len(unread) > 5 else "")
        plural = "keys" if len(unread) > 1 else "key"
        span, near = _nearest(unread[0], mentioned, tree.span)
        what = f'read the key in the spec, or write: ignore "{unread[0]}"'
        hint = f'the nearest is "{near}"; {what}' if near else what
        raise SpecError(f"nothing reads the {plural} {names} of {header.source}", span, tree.source, hint)


def check_tensors(tree: ast.Architecture, header: Header, known: set[str]) -> None:
    """Every tensor of the file must be read, or ignored by name."""
    unread = [name for name in header.tensors if name not in known]
    if unread:
        names = ", ".join(unread[:5]) + (" …" if len(unread) > 5 else "")
        count = f"{len(unread)} tensors: " if len(unread) > 1 else "tensor "
        mentioned = {n.text: n.span for n in walk(tree) if isinstance(n, ast.Name)}
        bare = re.sub(r"^blk\.\d+\.|\.weight$", "", unread[0])
        span, near = _nearest(bare, mentioned, tree.span)
        what = f"use `{bare}` where it belongs, or write in the block: ignore {bare}"
        hint = f"the nearest name in the spec is `{near}`; {what}" if near else what
        raise SpecError(f"nothing reads {count}{names} of {header.source}", span, tree.source, hint)


def _nearest(wanted: str, places: dict[str, Span], fallback: Span) -> tuple[Span, str]:
    near = difflib.get_close_matches(wanted, list(places), 1, 0.0)
    return (places[near[0]], near[0]) if near else (fallback, "")
