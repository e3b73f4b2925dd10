"""The section of a table that is in the language of the specs: how a model is configured elsewhere, from a file's keys.

`param` lines are only read; every `let` is one setting. `let name[i]` has a value per layer, a name with dots is a
setting within another, and `V` is the size of the vocabulary.
"""

from __future__ import annotations

import re
from typing import Any

from briolette.compiler.elaborate import Elaborator
from briolette.compiler.header import Header
from briolette.compiler.values import Frame, Layer, Missing
from briolette.spec import syntax
from briolette.spec import tree as ast
from briolette.spec.errors import Span

from .table import Table

_DOTTED = re.compile(r"^let ([\w.]+)", re.MULTILINE)
# What the grammar asks of a spec and a table has no use for.
_MODEL = "model(tokens: [T]) -> [T] { return tokens }\n"


class Settings(Elaborator):
    """Evaluates the lines; a per-layer one sees its layer's tensors: `has(attn_v)`."""

    def _indexed(self, declared: ast.Param | ast.Let, index: int, span: Span) -> Any:
        assert declared.index is not None
        layer = Layer(index)
        value = self.evaluator.value(declared.value, Frame({declared.index: layer}, "blk.{i}", layer))
        return super()._indexed(declared, index, span) if isinstance(value, list) else value


def settings(table: Table, section: str, header: Header, layers: int) -> dict[str, Any]:
    """The settings that a section gives for a file, dotted names as dictionaries. Raises SpecError with the line."""
    text = table.only(section)
    dotted = {name.replace(".", "_"): name for name in _DOTTED.findall(text)}
    text = _DOTTED.sub(lambda m: m[0].replace(".", "_"), text)  # of the same width, for carets
    # The first line of a table is a comment, so that this moves no other line.
    text = f"arch {header.architecture}\n{text.partition(chr(10))[2]}\n{_MODEL}"
    tree = syntax.parse(text, str(table.path))
    reader = Settings(tree, header)
    reader.dims["V"] = header.tensors["token_embd.weight"].shape[0]
    for line in tree.of(ast.Require):
        reader.require(line)
    found: dict[str, Any] = {}
    for let in reader.lets.values():
        if let.index is None:
            value = reader.lookup(let.name, Frame(), let.span)
        else:
            value = [reader.per_layer(let.name, Layer(i), let.span) for i in range(layers)]
        _put(found, dotted[let.name].split("."), value)
    return found


def _put(found: dict[str, Any], path: list[str], value: Any) -> None:
    """Settings within others that are none are left out."""
    *outer, name = path
    for part in outer:
        found = found.setdefault(part, {})
    if value is not None or not outer:
        assert not isinstance(value, Missing)
        found[name] = value
