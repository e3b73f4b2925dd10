"""Where weights are kept: packed where there is memory for it, in the file where there is not."""

from __future__ import annotations

import math
from dataclasses import replace

from briolette.backends import formats
from briolette.backends.base import WEIGHTS, Options
from briolette.compiler.cost import kv_token_bytes
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header, TensorInfo
from briolette.compiler.ir import Module
from briolette.compiler.rules.cache import kept

from .available import Available
from .gguf import GgufFile
from .memory import Planner
from .words import size

BESIDE = 1 << 30  # more than all takes that is neither weights nor cache, where chunks are of ordinary size


def fitted(
    source: GgufFile | Header, module: Module, options: Options, backend: str, given: Available, asked: bool = False
) -> Options:
    """The options, with weights kept in the first way, from theirs on in `WEIGHTS`, that fits into the given memory.

    Pages of the file are not counted: the system reads them when they are wanted, and may drop them. asked: whether
    weights shall be kept as the options say and in no other way; where that does not fit, BrioletteError tells what
    would.
    """
    if options.weights == "mapped" or plenty(module, options, given):
        return options
    planner = Planner(source, module, options.cache, backend)
    wanted = WEIGHTS[WEIGHTS.index(options.weights) :]
    needed = {weights: planner.plan(replace(options, weights=weights)).beside_file for weights in wanted}
    fitting = next((weights for weights in wanted if needed[weights] <= given.bytes), "mapped")
    if asked and fitting != options.weights:
        others = ", ".join(f"{weights} {size(needed[weights])}" for weights in wanted[1:])
        header = source if isinstance(source, Header) else source.header
        raise BrioletteError(
            f"with {options.weights} weights, {header.source} takes {size(needed[options.weights])} of memory beside "
            f"the file, more than the {size(given.bytes)} that {given.source}; with others it takes: {others} "
            "(--weights, or weights=); a smaller context takes less, too"
        )
    return replace(options, weights=fitting)


def plenty(module: Module, options: Options, given: Available) -> bool:
    """Whether no plan, which takes a second, is needed to see that everything fits."""
    weights = sum(map(_stored_bytes, module.tensors))
    cache = options.sequences * options.context * sum(kv_token_bytes(kept(module, options.cache)).values())
    return 2 * (weights + cache + BESIDE) <= given.bytes


def _stored_bytes(tensor: TensorInfo) -> int:
    columns = tensor.shape[-1] if tensor.shape else 1
    return formats.row_bytes(tensor.format, columns) * math.prod(tensor.shape[:-1])
