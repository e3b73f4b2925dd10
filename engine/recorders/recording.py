"""What recorders share: their command line, our labels of the model, and the values found so far."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from briolette.backends.reading import token_ids
from briolette.compiler.dims import evaluate
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module, Node
from briolette.compiler.labels import labels
from briolette.compiler.pipeline import front
from briolette.spec import syntax

from ..gguf import GgufFile, open_gguf
from ..source import architecture
from ..tokenizer import Tokenizer
from ..tracing.file import Recording, save
from ..words import ids_of
from .table import Table, Theirs, beside, chosen, load

Array = NDArray[Any]


@dataclass
class Reference:
    """A model file, a prompt, and the values of another engine so far, by our labels."""

    file: GgufFile
    table: Table
    module: Module
    tokens: list[int]
    nodes: dict[str, Node]  # every label of the program
    values: dict[str, Array] = field(default_factory=dict)
    sought: set[str] = field(default_factory=set)  # labels that the table has a name for

    @property
    def layers(self) -> int:
        """How many layers the program has."""
        return 1 + max((layer for layer, _ in self.module.places.values() if layer is not None), default=-1)

    def wanted(self, section: str) -> dict[Theirs, str]:
        """Which of their values have a label in this program, and which one it is."""
        found: dict[Theirs, str] = {}
        for row in self.table.unrolled(section, self.layers):
            label = chosen(row, self.nodes)
            if len(row.theirs) != 1 or len(label or "_") != 1:
                raise self.table.fail("one value has one label", row.line)
            if label is not None:
                found[row.theirs[0]] = label[0]
        self.sought = set(found.values())
        return found

    def put(self, label: str, value: Array) -> None:
        """Keeps a value, in the shape that ours has. The first of a label counts."""
        if label in self.values:
            return
        wanted = self.nodes[label].type
        shape = tuple(evaluate(size, {"T": len(self.tokens)}) for size in wanted.shape)
        if value.size != np.prod(shape):
            raise BrioletteError(f"{label} is {list(shape)} here and {list(value.shape)} there, by {self.table.path}")
        dtype = np.int32 if wanted.dtype == "i32" else np.float32
        self.values[label] = np.ascontiguousarray(value.reshape(shape), dtype)


def open_reference(path: str, tokens: list[int] | None, prompt: str = "") -> Reference:
    """A reference without values yet. Raises BrioletteError for files and tokens that are none."""
    file = open_gguf(path)
    tree = architecture(None, file.header)
    table = load(beside(syntax.shipped()[tree.name]))
    tokens = Tokenizer(file.header).encode(prompt) if tokens is None else tokens
    module = front(tree, file.header)
    rows = token_ids(module)
    if not tokens:
        raise BrioletteError("there are no tokens to run: give a --prompt, or --tokens such as 2,5,9")
    wrong = next((token for token in tokens if not 0 <= token < rows), None)
    if wrong is not None:
        raise BrioletteError(f"token id {wrong} is outside the vocabulary of {rows}")
    return Reference(file, table, module, tokens, labels(module))


def main(name: str, about: str, record: Callable[[Reference], dict[str, str]]) -> None:
    """The command line of a recorder. `record` finds the values, and tells the `producer` and its `precision`."""
    command = f"python -m briolette.engine.recorders.{name}"
    parser = argparse.ArgumentParser(
        prog=command,
        description=about,
        epilog=f'Examples:\n  {command} model.gguf --prompt "Hello" -o ref.npz\n'
        f"  {command} model.gguf --tokens 2,5,9 -o ref.npz\n"
        "  briolette trace model.gguf --against ref.npz",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a GGUF file")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", default="", help="a text, which the file's tokenizer splits")
    prompt.add_argument("--tokens", help="token ids, such as 2,5,9")
    parser.add_argument("-o", "--output", required=True, help="the trace to write, an .npz file")
    options = parser.parse_args()
    try:
        given = None if options.tokens is None else ids_of(options.tokens, "--tokens")
        reference = open_reference(options.model, given, options.prompt)
        told = {**record(reference), "model": reference.file.path.name}
        save(options.output, Recording(np.array(reference.tokens, np.int32), reference.values, told))
    except BrioletteError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.stderr.write(f"{len(reference.values)} values of {len(reference.tokens)} tokens: {options.output}\n")
    missed = sorted({re.sub(r"^blk\.\d+", "blk.{i}", label) for label in reference.sought - reference.values.keys()})
    if missed:
        sys.stderr.write(f"not seen there: {', '.join(missed)}\n")


def not_installed(missing: ModuleNotFoundError) -> NoReturn:
    """What is said where the other engine is not installed."""
    sys.stderr.write(f"error: {missing.name} is not installed here; `make peers` makes an environment that has it\n")
    sys.exit(2)
