"""Example headers: real sizes for each shipped architecture, so that a spec can be compiled without a model file.

They lie in `spec/examples/`, one JSON file an architecture: `about` says whose sizes they are, `metadata` has the keys
without the architecture's name before them, `tensors` the shapes by name; `blk.{0-4,6}.attn_v.weight` stands for
several layers. Matrices are bf16, as published, vectors f32.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from briolette.spec import syntax

from .errors import BrioletteError
from .header import Header, TensorInfo
from .text import layers_of_ranges


def example(architecture: str) -> Header:
    """The example header of an architecture. Raises BrioletteError where it has none."""
    path = syntax.example(architecture)
    if path is None:
        raise BrioletteError(
            f"{architecture} comes with no example sizes: say with a model file for which sizes it is compiled"
        )
    return read_example(architecture, path)


def read_example(architecture: str, path: Path) -> Header:
    """The header that an example file describes."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    metadata = {f"{architecture}.{key}": value for key, value in found["metadata"].items()}
    tensors = {name: _tensor(name, shape) for pattern, shape in found["tensors"].items() for name in _names(pattern)}
    return Header(
        {"general.architecture": architecture, "general.name": found["about"], **metadata},
        dict(sorted(tensors.items(), key=lambda item: _layer(item[0]))),
        f"example sizes of {architecture}",
    )


def _tensor(name: str, shape: list[int]) -> TensorInfo:
    return TensorInfo(name, tuple(shape), "bf16" if len(shape) > 1 else "f32")


def _names(pattern: str) -> list[str]:
    """The tensors that a name with layer ranges in braces stands for."""
    before, braces, rest = pattern.partition("{")
    if not braces:
        return [pattern]
    ranges, _, after = rest.partition("}")
    return [f"{before}{layer}{after}" for layer in layers_of_ranges(ranges)]


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1
