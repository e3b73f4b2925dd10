"""The programs of a model as an engine gets them: from earlier runs where they are kept, else compiled."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ..base import Options, Source
from .jit import Library
from .record import Record
from .store import joined, kept, key_of, parted
from .target import Target

if TYPE_CHECKING:
    from briolette.compiler.ir import Module

    from .compilation import Compilation


class Programs:
    """Records and machine code of a source for a machine. The source's module is made only for what is not kept."""

    def __init__(self, source: Source, target: Target):
        self.source, self.target = source, target
        self.records: dict[tuple[str, ...], Record] = {}

    @cached_property
    def compilation(self) -> Compilation:
        from .compilation import Compilation  # all of the compiler, which takes a while to import

        return Compilation(self.source.module, self.target)

    def record(self, group: str, options: Options) -> Record:
        """What is known of a group's programs."""
        # All of the options that programs depend on: see `form_of` and `rows_of`.
        wanted = (group, options.cache, str(options.chunk), options.weights, options.prefill)
        if wanted not in self.records:
            self.records[wanted] = self._record(wanted, options)
        return self.records[wanted]

    def _record(self, wanted: tuple[str, ...], options: Options) -> Record:
        if not self.source.key:
            return self.compilation.record(wanted[0], options)
        name = f"{key_of(self.target, ['record', self.source.key, *wanted])}.json"
        return Record.from_bytes(kept(name, lambda: self.compilation.record(wanted[0], options).to_bytes()))

    def library(self, group: str, options: Options, profiled: bool = False) -> Library:
        """The machine code of a group's programs, ready to be called."""
        name = self.record(group, options).code + (".profiled.o" if profiled else ".o")
        objects = kept(name, lambda: joined(self.compilation.code(group, options, profiled)))
        return Library(parted(objects), self.target)

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return next(iter(self.records.values())).vocabulary if self.records else self.compilation.vocabulary

    @property
    def token_ids(self) -> int:
        """How many tokens the model knows."""
        return next(iter(self.records.values())).token_ids if self.records else self.compilation.token_ids


def programs_of(given: Source | Module, target: Target | None = None) -> Programs:
    """The programs of a source, or of a module that is there, for a machine (this one); kept with the source, since
    who plans its memory makes half of what an engine wants."""
    source, target = Source.of(given), target or Target.host()
    found: Programs = source.made.setdefault(f"cpu {target}", Programs(source, target))
    return found
