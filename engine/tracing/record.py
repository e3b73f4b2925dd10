"""Recording: the named values of one pass, on any backend."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from briolette.compiler.dims import symbol
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module, Node
from briolette.compiler.labels import labels, per_token, shown_labels
from briolette.compiler.ops import OPS
from briolette.compiler.plan import is_view

from ..model import Model
from .file import Recording

T = symbol("T")
NUMBERED = re.compile(r"(?P<scope>.*)\.(?P<op>[a-z_]+)\.\d+")


def recordable(item: Node) -> bool:
    """Whether a value has a row for each token and is no view of another; token ids are kept anyway."""
    return item.shape[:1] == (T,) and item.op != "tokens" and not is_view(item)


def numbered(label: str) -> bool:
    """Whether a label only counts ops, such as `blk.3.ffn.mul.1`: in another program it may mean another value."""
    match = NUMBERED.fullmatch(label)
    return match is not None and match["op"] in OPS


def names_of(module: Module) -> dict[Node, list[str]]:
    """All labels of each value."""
    found: defaultdict[Node, list[str]] = defaultdict(list)
    for label, item in labels(module).items():
        found[item].append(label)
    return found


def further_names(module: Module) -> dict[Node, list[str]]:
    """All labels of each value, and those of its reshapes: they are the same numbers."""
    found = names_of(module)
    for item, names in list(found.items()):
        source = item
        while source.op == "reshape":
            source = source.args[0]
        if source is not item:
            found[source] = [*found.get(source, ()), *(name for name in names if not numbered(name))]
    return found


def where(module: Module, item: Node) -> str:
    """`file:line` of the spec line that a value came from, or an empty text."""
    spans = module.origins.get(item, ())
    return f"{str(spans[0].file).rsplit('/', 1)[-1]}:{spans[0].line}" if spans else ""


def choose(module: Module, patterns: Sequence[str] = ()) -> list[str]:
    """The labels to record: all that `recordable` says, or those that match glob patterns.

    Raises BrioletteError for a pattern that matches nothing.
    """
    shown = shown_labels(module)
    if not patterns:
        return [label for item, label in shown.items() if recordable(item)]
    known = per_token(module)
    chosen: dict[Node, str] = {}
    for pattern in patterns:
        matched = [label for label in known if fnmatchcase(label, pattern)]
        if not matched:
            close = difflib.get_close_matches(pattern, known, 3)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(list(known)[:6])} and so on"
            )
            raise BrioletteError(f"no value of this program matches `{pattern}`; {hint}")
        for label in matched:
            chosen.setdefault(known[label], label)
    return [label for item, label in chosen.items()]


def record(model: Model, ids: Sequence[int], patterns: Sequence[str] = ()) -> Recording:
    """A recording of a pass over `ids` in a fresh context on the model's backend."""
    module = model.module
    chosen = choose(module, patterns)
    found, known, names = model.values(ids, chosen), labels(module), further_names(module)
    values = {
        label: {
            "op": known[label].op,
            "where": where(module, known[label]),
            "shape": list(found[label].shape),
            "names": [name for name in names[known[label]] if name != label],
        }
        for label in chosen
    }
    about = {
        "producer": f"briolette {model.backend.name}",
        "model": model.file.path.name,
        "spec": str(model.tree.span.file).rsplit("/", 1)[-1],
        "precision": "f32",
        "kv": model.options.cache,
        "complete": not patterns,
        "values": values,
    }
    return Recording(np.array(ids, np.int32), found, about, model.file.path.name)
