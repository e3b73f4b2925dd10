"""What the compiler needs to know of a model file: its metadata and the shapes and formats of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor.

    `shape` is row-major (the reverse of GGUF's dimension order): a linear weight is `(out, in)`.
    `format` is the lower-case GGUF block format, such as `f32` or `q4_k`.
    """

    name: str
    shape: tuple[int, ...]
    format: str


@dataclass(frozen=True)
class Header:
    """A model file's header. `metadata` holds Python scalars, strings and lists under their full GGUF keys."""

    metadata: Mapping[str, object]
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    source: str = "<header>"

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))
