"""What of a difference is best read as tables: hyperparameters, kinds of layers, tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..ir import Module
from ..text import layer_ranges, plain
from .script import Difference, renamed_blocks, renamed_kinds


@dataclass(frozen=True)
class Row:
    """One value before and after; an empty text is: not there."""

    name: str
    before: str
    after: str


def param_rows(a: Module, b: Module) -> list[Row]:
    """Hyperparameters that differ, by the specs' names for them."""
    return list(_rows("", dict(a.params), dict(b.params)))


def kind_rows(a: Module, b: Module) -> list[Row]:
    """Kinds of layers that differ: which layers are of the kind, and what it sets."""
    ours, theirs = ({name: (layers, dict(entries)) for name, layers, entries in m.kinds} for m in (a, b))
    for new, old in renamed_kinds(a, b).items():
        ours[new] = ours.pop(old)
    found: list[Row] = []
    for kind in dict.fromkeys((*ours, *theirs)):
        layers, before = ours.get(kind, ((), {}))
        others, after = theirs.get(kind, ((), {}))
        if layers != others:
            found.append(Row(f"{kind}: layers", layer_ranges(layers), layer_ranges(others)))
        found += _rows(f"{kind}: ", before, after)
    return found


def renamed_rows(change: Difference, a: Module, b: Module) -> list[Row]:
    """Kinds of layers and blocks that have another name and are otherwise the same, or much alike."""
    found = [Row("kind", old, new) for new, old in renamed_kinds(a, b).items()]
    return [*found, *(Row("block", old, new) for new, old in renamed_blocks(change).items())]


def _rows(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Row]:
    for name in dict.fromkeys((*before, *after)):
        texts = [value_text(side[name]) if name in side else "" for side in (before, after)]
        if texts[0] != texts[1]:
            yield Row(prefix + name, *texts)


def value_text(value: Any) -> str:
    """A hyperparameter; one with a value per layer says which layers have which."""
    if not isinstance(value, tuple):
        return plain(value)
    layers: dict[str, list[int]] = {}
    for layer, item in enumerate(value):
        layers.setdefault(value_text(item), []).append(layer)
    return "; ".join(f"{text} in {layer_ranges(which)}" for text, which in layers.items())


# --- tensors --------------------------------------------------------------------------------------------

Variants = dict[tuple[tuple[int, ...], str], list[int | None]]  # shape and format -> layers


@dataclass(frozen=True)
class TensorRow:
    """A tensor, or one of every layer, in both models: shapes and formats with their layers."""

    name: str
    before: str
    after: str
    partly: bool  # whether one of the models has it in some layers only, or not at all


def tensor_rows(a: Module, b: Module) -> list[TensorRow]:
    """The tensors that only one of two models has, or has differently. A text is empty where the model has none."""
    ours, theirs = _by_name(a), _by_name(b)
    found = []
    for name in dict.fromkeys((*ours, *theirs)):
        before, after = ours.get(name, {}), theirs.get(name, {})
        if before != after:
            whole = [_everywhere(side, all_of) for side, all_of in ((before, ours), (after, theirs))]
            found.append(TensorRow(name, _variants(before), _variants(after), whole[0] != whole[1]))
    return found


def _everywhere(found: Variants, tensors: Mapping[str, Variants]) -> bool:
    """Whether a tensor is in as many layers as any is; one outside of the layers always is."""
    most = max((sum(map(len, side.values())) for side in tensors.values()), default=0)
    return sum(map(len, found.values())) in (1, most)


def _by_name(module: Module) -> dict[str, Variants]:
    found: dict[str, Variants] = {}
    for tensor in module.tensors:
        match = re.match(r"blk\.(\d+)\.(.*)", tensor.name)
        name, layer = (f"blk.{{i}}.{match[2]}", int(match[1])) if match else (tensor.name, None)
        found.setdefault(name, {}).setdefault((tensor.shape, tensor.format), []).append(layer)
    return found


def _variants(found: Variants) -> str:
    parts = []
    for (shape, format), layers in found.items():
        within = [layer for layer in layers if layer is not None]
        where = f" in {layer_ranges(within)}" if within else ""
        parts.append(f"{' x '.join(map(str, shape))} {format}{where}")
    return "; ".join(parts)
