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
LOGITS = 1 << 22  # numbers: 16 MiB a value
NUMBERED = re.compile(r"(?P<scope>.*)\.(?P<op>[a-z_]+)\.\d+")


def recordable(item: Node) -> bool:
    """Whether a value has a row for each token and is no view of another; token ids are kept anyway."""
    return item.shape[:1] == (T,) and item.op != "tokens" and not is_view(item)


def numbered(label: str) -> bool:
    """Whether a label only counts ops, such as `blk.3.ffn.mul.1`: in another program it may mean another value."""
    match = NUMBERED.fullmatch(label)
    return match is not None and match["op"] in OPS


def head(module: Module) -> set[Node]:
    """The logits, and what leads to them from the last product on: the values as wide as the vocabulary."""
    found: set[Node] = set()
    waiting = [module.outputs[0]]
    while waiting:
        item = waiting.pop()
        found.add(item)
        if item.op != "linear":
            if "elementwise" not in OPS[item.op].traits:
                return set()
            waiting += [arg for arg in item.args if arg.shape == item.shape]
    return found


def last_rows(module: Module, tokens: int) -> int:
    """Of how many of the last tokens logits are kept: a vocabulary is large, and each row tells much the same."""
    width = module.outputs[0].shape[-1]
    return min(tokens, max(1, LOGITS // width)) if isinstance(width, int) else tokens


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
    return spans[0].place if spans else ""


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
    """A recording of a pass over `ids` in a fresh context on the model's backend; of logits, `last_rows` of them."""
    module = model.module
    chosen = choose(module, patterns)
    known, names = labels(module), further_names(module)
    last, tail = last_rows(module, len(ids)), head(module)
    found = model.values(ids, chosen, {label: last for label in chosen if known[label] in tail})
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
        "spec": model.tree.span.name,
        "precision": "f32",
        "kv": model.options.cache,
        "complete": not patterns,
        **({"last_logits": last} if last < len(ids) else {}),
        "values": values,
    }
    return Recording(np.array(ids, np.int32), found, about, model.file.path.name)
