"""Whether a model's prompts may be rounded to 8 bits without being asked for: where that was measured to cost little.

`briolette eval prefill` measures the mean KL divergence of a fast prefill from an exact one, and keeps it beside the
compiled programs, for a file of this content, architecture and version of the code. `load` takes the fast one where it
is small enough.
"""

from __future__ import annotations

import hashlib
import json

from briolette.backends.base import PREFILL
from briolette.backends.cpu.store import code_version, look_up, put

from .gguf import GgufFile
from .source import ModelSource

MOST = 0.004  # nats; llama.cpp, whose activations always have 8 bits, loses more on Gemma 3 270M
EXACT, FAST = PREFILL
SAMPLE = 256  # bytes of each tensor, from its middle, that tell fine-tuned models apart


def prefill_of(file: GgufFile, source: ModelSource) -> str:
    """One of `PREFILL`: the way that suits a model where none is asked for."""
    measured = _measured(file, source)
    # Tensors are read only where one of such models was measured: every start comes by here.
    found = measured.get(_content(file)) if measured else None
    return FAST if found is not None and found <= MOST else EXACT


def remember(file: GgufFile, source: ModelSource, mean_kld: float) -> bool:
    """Keeps what was measured; whether it could be kept, and will be found again: not of an architecture that came
    without a text."""
    if not source.key:
        return False
    content = _content(file)
    put(_name(file, source), json.dumps(_measured(file, source) | {content: mean_kld}).encode())
    return content in _measured(file, source)


def _measured(file: GgufFile, source: ModelSource) -> dict[str, float]:
    """The mean KLD of each model that has been measured, by its content, of those that differ in nothing else."""
    found = look_up(_name(file, source)) if source.key else None
    return {} if found is None else json.loads(found)


def _name(file: GgufFile, source: ModelSource) -> str:
    return f"{hashlib.sha256(f'{code_version()} {source.key} {file.size}'.encode()).hexdigest()}.prefill"


def _content(file: GgufFile) -> str:
    """A hash of some of each tensor."""
    digest = hashlib.sha256()
    for name in sorted(file.header.tensors):
        content = file.tensor_bytes(name)
        digest.update(content[len(content) // 2 :][:SAMPLE].tobytes())
    return digest.hexdigest()
