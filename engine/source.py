"""An architecture and a model file: which text is meant, and the program that the two make together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from briolette.backends.base import Source
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.spec import files

if TYPE_CHECKING:  # a program that is known from an earlier run needs neither parser nor compiler
    from briolette.compiler.ir import Module
    from briolette.spec.tree import Architecture


class ModelSource(Source):
    """An architecture against a model file's header: its tree and its unrolled module, made when they are asked for.

    Its key is a hash of the architecture's text and of all of the header that such a text can read; "" for a tree that
    came without a text.
    """

    def __init__(self, header: Header, tree: Callable[[], Architecture], text: str | None = None):
        super().__init__(self._unrolled, "" if text is None or not header.architecture else _key(text, header))
        self.header, self._tree = header, tree

    @cached_property
    def tree(self) -> Architecture:
        return self._tree()

    @property
    def name(self) -> str:
        """The architecture's name."""
        return self.header.architecture or self.tree.name

    def _unrolled(self) -> Module:
        from briolette.compiler.garbage import uncollected
        from briolette.compiler.pipeline import front

        with uncollected():
            return front(self.tree, self.header)


def source_of(spec: str | Path | Architecture | None, header: Header) -> ModelSource:
    """What a tree, an `.arch` path or a shipped name makes of a model, or, without any, what the file says it is.

    Raises BrioletteError where there is no such architecture; what is wrong with its text, or does not fit the file,
    shows when its program is made.
    """
    if spec is not None and not isinstance(spec, str | Path):
        return ModelSource(header, lambda: spec)
    path = _path(spec, header)
    text = files.read(path)

    def tree() -> Architecture:
        from briolette.spec.syntax import parse

        return parse(text, str(path))

    return ModelSource(header, tree, text)


def architecture(spec: str | Path | Architecture | None, header: Header) -> Architecture:
    """The syntax tree of that."""
    return source_of(spec, header).tree


def _path(spec: str | Path | None, header: Header) -> Path:
    shipped = files.shipped()
    if spec is None:
        if header.architecture not in shipped:
            known = ", ".join(shipped)
            raise BrioletteError(
                f"{header.source} is of architecture `{header.architecture}`, which does not come with briolette "
                f"(there are {known}); write it as an .arch file and pass it with spec= or --spec"
            )
        return shipped[header.architecture]
    if str(spec) in shipped:
        return shipped[str(spec)]
    if not Path(spec).exists():
        raise BrioletteError(f"there is no architecture file {spec}; shipped ones go by name: {', '.join(shipped)}")
    return Path(spec)


def _key(text: str, header: Header) -> str:
    digest = hashlib.sha256(f"{files.language()}\0{text}".encode())
    for part in _readable(header):
        digest.update(f"\0{part}".encode())
    return digest.hexdigest()


def _readable(header: Header) -> Iterator[str]:
    """All of a header that an architecture's text can read: keys under its own name, and what tensors there are."""
    own = f"{header.architecture}."
    yield own
    for name, value in header.metadata.items():
        if name.startswith(own):
            whole = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            yield f"{name} {whole!r}"  # whole: a long list, which is left in the file, tells its beginning only
    for tensor in header.tensors.values():
        yield f"{tensor.name} {tensor.shape} {tensor.format}"
