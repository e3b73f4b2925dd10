"""Where weights are kept: packed where there is memory for it, in the file where there is not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from briolette.backends.base import WEIGHTS, Options, Source
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header

from .available import Available
from .backends import room_of
from .gguf import GgufFile
from .memory import Planner
from .words import many, size

if TYPE_CHECKING:
    from briolette.compiler.ir import Module


def fitted(
    file: GgufFile | Header,
    source: Source | Module,
    options: Options,
    backend: str,
    given: Available,
    asked: bool = False,
) -> Options:
    """The options, with weights kept in the first way, from theirs on in `WEIGHTS`, that fits into the given memory.

    Pages of the file are not counted: the system reads them when they are wanted, and may drop them. asked: whether
    weights shall be kept as the options say and in no other way; where that does not fit, BrioletteError tells what
    would. Raises it, too, for a source that cannot be compiled.

    What lies on a device takes the same however weights are kept: there, too little memory is always an error.
    """
    planner = Planner(file, source, options.cache, backend)
    if room_of(backend) is not None:
        return _on_device(planner, file, options, given)
    needed: dict[str, int] = {}
    for weights in WEIGHTS[WEIGHTS.index(options.weights) :]:
        needed[weights] = planner.beside_file(replace(options, weights=weights))
        if needed[weights] <= given.bytes or weights == WEIGHTS[-1]:
            break
    if asked and weights != options.weights:
        others = {w: planner.beside_file(replace(options, weights=w)) for w in WEIGHTS[1:] if w != options.weights}
        header = file if isinstance(file, Header) else file.header
        raise BrioletteError(
            f"with {options.weights} weights, {header.source} takes {size(needed[options.weights])} of memory beside "
            f"the file, more than the {size(given.bytes)} that {given.source}; with others it takes: "
            f"{', '.join(f'{w} {size(count)}' for w, count in others.items())} "
            "(--weights, or weights=); a smaller context takes less, too"
        )
    return replace(options, weights=weights)


def _on_device(planner: Planner, file: GgufFile | Header, options: Options, given: Available) -> Options:
    needed = planner.beside_file(options)
    if needed > given.bytes:
        plan = planner.plan(options)
        header = file if isinstance(file, Header) else file.header
        raise BrioletteError(
            f"{header.source} takes {size(needed)} of a device's memory ({size(plan.packed + plan.decoded)} weights, "
            f"{size(plan.kv_bytes)} KV cache of {many(options.context, 'token')}, "
            f"{size(plan.arena + plan.scratch + plan.addresses)} results within a step), more than the "
            f"{size(given.bytes)} that {given.source}: take a smaller context (--context), a compressed cache (--kv "
            "balanced), a smaller model or --backend cpu"
        )
    return options
