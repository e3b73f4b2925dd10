"""Headers of models that nobody has downloaded: true shapes, and the formats that a Q4_K_M file has.

They lie in `spec/sizes/`, one JSON file a model. Its layers are of kinds, a letter each, and what several kinds have is
written once under all their letters:

    layers      the kinds in their order; blanks are layout
    metadata    keys without the architecture's name before them
    per_layer   keys with a value for each layer
    counts      keys that count the layers of some kinds
    tensors     shapes, for each layer of the kinds where the name has {i}, else once; "256 a layer" is a size
    values      runs of numbers in vectors that are not all ones

With fewer layers the kinds keep their proportions as far as they can, the first layers of each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header, TensorInfo
from briolette.spec import syntax

# What llama.cpp makes of tensors for Q4_K_M (llama-quant.cpp, llama_tensor_get_type_impl, with the head tied to the
# embedding): most are q4_k. Some have more bits in some layers; what has no whole blocks of 256 gets smaller ones.
MOST, MORE = "q4_k", "q6_k"
TABLES = ("token_embd.weight", "per_layer_token_embd.weight")  # always with more bits
SOMETIMES = ("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight")
AS_PUBLISHED = {"per_layer_model_proj.weight": "bf16", "ffn_gate_inp.weight": "f32"}
BLOCK, SMALLER = 256, {"q4_k": "q5_0", "q6_k": "q8_0"}


@dataclass(frozen=True)
class Sizes:
    """A model's header, and the numbers in vectors that are not all ones: runs of (how many, which)."""

    name: str
    about: str
    header: Header
    values: Mapping[str, Sequence[tuple[int, float]]]


def sizes(name: str) -> Sizes:
    """The sizes of a model by name, or of as many of its layers as `NAME:LAYERS` says. Raises BrioletteError."""
    known = syntax.sizes()
    wanted, colon, layers = name.partition(":")
    if wanted not in known:
        raise BrioletteError(f"there are no sizes of {wanted!r}; there are those of {', '.join(known)}")
    found: dict[str, Any] = json.loads(known[wanted].read_text(encoding="utf-8"))
    every = found["layers"].replace(" ", "")
    if colon and not (layers.isascii() and layers.isdecimal() and 1 <= int(layers) <= len(every)):
        raise BrioletteError(f"{wanted} has 1 to {len(every)} layers, not {layers!r}")
    kinds = shortened(every, int(layers)) if colon else every
    about = f"{found['about']}, {len(kinds)} of {len(every)} layers" if len(kinds) < len(every) else found["about"]
    return Sizes(wanted, about, _header(found, kinds, name), found["values"])


def shortened(kinds: str, count: int) -> str:
    """So many of the layers, of each kind by its part of all; the first of every kind, as long as there is room."""
    counts = Counter(kinds)  # in the order of the kinds' first layers
    parts = {kind: count * n / len(kinds) for kind, n in counts.items()}
    quota = dict.fromkeys(counts, 0) | dict.fromkeys(list(counts)[:count], 1)
    while sum(quota.values()) < count:
        quota[max(counts, key=lambda kind: (parts[kind] - quota[kind], -kinds.index(kind)))] += 1
    kept = [i for kind in counts for i in [i for i, k in enumerate(kinds) if k == kind][: quota[kind]]]
    return "".join(kinds[i] for i in sorted(kept))


def _header(found: Mapping[str, Any], kinds: str, name: str) -> Header:
    architecture = found["architecture"]
    metadata = dict(found["metadata"])
    for key, values in found["per_layer"].items():
        by_kind = {kind: value for letters, value in values.items() for kind in letters}
        metadata[key] = [by_kind[kind] for kind in kinds]
    for key, letters in found["counts"].items():
        metadata[key] = sum(kind in letters for kind in kinds)
    shapes: dict[str, tuple[int, ...]] = {}
    for letters, tensors in found["tensors"].items():
        of = [i for i, kind in enumerate(kinds) if kind in letters]
        for pattern, shape in tensors.items():
            names = [pattern.replace("{i}", str(i)) for i in of] if "{i}" in pattern else [pattern] if of else []
            shapes |= dict.fromkeys(names, tuple(_size(size, len(kinds)) for size in shape))
    formats = _formats(shapes)
    return Header(
        {"general.architecture": architecture, "general.name": found["about"]}
        | {f"{architecture}.{key}": value for key, value in metadata.items()},
        {tensor: TensorInfo(tensor, shape, formats[tensor]) for tensor, shape in shapes.items()},
        name,
    )


def _size(size: int | str, layers: int) -> int:
    return size if isinstance(size, int) else int(size.removesuffix(" a layer")) * layers


def _formats(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Each tensor's format in a Q4_K_M file."""
    found = {}
    for name, shape in shapes.items():
        kind = _kind(name)
        if len(shape) < 2 or "_norm" in kind:
            found[name] = "f32"
        elif kind in AS_PUBLISHED:
            found[name] = AS_PUBLISHED[kind]
        else:
            wanted = MORE if kind in TABLES else MOST
            found[name] = wanted if shape[-1] % BLOCK == 0 else SMALLER[wanted]
    for kind in SOMETIMES:
        those = sorted((name for name in shapes if _kind(name) == kind), key=lambda name: int(name.split(".")[1]))
        for place, name in enumerate(those):
            if more_bits(place, len(those)):
                found[name] = MORE if shapes[name][-1] % BLOCK == 0 else SMALLER[MORE]
    return found


def _kind(name: str) -> str:
    """A tensor's name without its layer."""
    return name.split(".", 2)[2] if name.startswith("blk.") else name


def more_bits(place: int, count: int) -> bool:
    """Whether the tensor at a place among `count` of its kind has more bits: llama-quant.cpp, use_more_bits."""
    eighth = count // 8
    return place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2
