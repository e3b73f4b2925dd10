"""What commands that look at programs accept: a model file, an architecture, or IR as `show` prints it.

`NAME@STAGE` is the program after a stage of the compiler, block form (`elaborated`) where none is said. An
architecture is compiled for a model file's sizes, or for the example sizes that come with it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from briolette.compiler.errors import BrioletteError
from briolette.compiler.example import example
from briolette.compiler.header import Header
from briolette.compiler.ir import Module
from briolette.compiler.pipeline import STAGES, Form, Trace, form_named, front, optimise
from briolette.compiler.text import parse_module
from briolette.compiler.unroll import unroll
from briolette.compiler.verify import verify
from briolette.spec import syntax

from .gguf import open_gguf
from .model import options_for
from .source import architecture

STANDARD_INPUT = ("-", "/dev/stdin")
BEGINNING = b"module "  # of printed IR
LAST = "optimised"  # another name for the last stage


@dataclass(frozen=True)
class Subject:
    """A program to look at. `header` is None where it came as text; `before` are earlier stages of the program."""

    name: str
    about: str
    stage: str
    module: Module
    header: Header | None = None
    before: tuple[Module, ...] = ()

    def unrolled(self) -> Module:
        """The program with its layers inline."""
        if self.module.form == "unrolled":
            return self.module
        if not self.module.tensors:
            raise BrioletteError(
                f"{self.name} has no table of tensors, without which it cannot be unrolled: print it with show --full"
            )
        return unroll(self.module)


def subject(text: str, on: str | None = None, form: str = "decode", kv: str | None = None) -> Subject:
    """The program that `text` names. `on` is the model file whose sizes architectures are compiled for.

    Raises BrioletteError for what cannot be found, read or compiled, and for stages that do not exist.
    """
    wanted = form_named(form)
    name, stage = parted(text)
    path = Path(name)
    if is_architecture(name):
        return _compiled(text, *sized(name, on), stage, wanted, kv)
    if name in STANDARD_INPUT or path.is_fifo():
        return _piped(name, stage)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file"
        known = ", ".join(syntax.shipped())
        raise BrioletteError(f"{name} {what}; give a GGUF file, an .arch file, printed IR, or one of {known}")
    if _is_ir(path):
        if stage is not None:
            raise BrioletteError(f"{name} is printed IR, which is at the stage it was printed at: leave @{stage} out")
        return _parsed(text, path.read_bytes())
    header = open_gguf(path).header
    return _compiled(text, architecture(None, header), header, stage, wanted, kv)


def two(a: str, b: str, on: str | None, form: str, kv: str | None) -> tuple[Subject, Subject]:
    """Two programs to compare. Raises BrioletteError as `subject` does, and where neither is for `on`'s sizes."""
    found = subject(a, on, form, kv), subject(b, on, form, kv)
    if on is not None:
        wanted = open_gguf(on).header.architecture
        if not any(side.module.name == wanted and is_architecture(parted(side.name)[0]) for side in found):
            raise BrioletteError(
                f"--on {on} is a model of {wanted}, and neither {a} nor {b} is an architecture file of that: leave "
                f"--on out, or compare with {wanted}"
            )
    return found


def parted(text: str) -> tuple[str, str | None]:
    """`NAME@STAGE` in its two parts. Raises BrioletteError where nothing or no stage is named."""
    if not text:
        raise BrioletteError("the name of a program is empty; give a GGUF file, an .arch file or a shipped one's name")
    name, at, stage = text.rpartition("@")
    if not at or Path(text).exists():
        return text, None
    return name, stage_named(stage)


def stage_named(name: str) -> str:
    """A stage by its name, the last also as `optimised`. Raises BrioletteError where there is none of that name."""
    stage = STAGES[-1] if name == LAST else name
    if stage not in STAGES:
        raise BrioletteError(f"there is no stage `{name}`; there are {', '.join(STAGES)}, and {LAST} (the last)")
    return stage


def is_architecture(name: str) -> bool:
    """Whether a person means an architecture, and no model file."""
    return name in syntax.shipped() or name.endswith(".arch")


def sized(name: str, on: str | None = None) -> tuple[syntax.Architecture, Header]:
    """An architecture with the header it is compiled for: the model file `on`'s, else its example sizes."""
    known = syntax.shipped()
    if name not in known and not Path(name).is_file():
        raise BrioletteError(f"there is no architecture file {name}; shipped ones go by name: {', '.join(known)}")
    tree = syntax.load(known.get(name, name))
    if on is not None:
        header = open_gguf(on).header
        if header.architecture == tree.name:
            return tree, header
    if syntax.example(tree.name) is None:
        raise BrioletteError(
            f"{name}: {tree.name} comes with no example sizes; say with --on MODEL for which it is compiled"
        )
    return tree, example(tree.name)


def _compiled(
    name: str, tree: syntax.Architecture, header: Header, stage: str | None, form: Form, kv: str | None
) -> Subject:
    trace = Trace()
    module = front(tree, header, trace)
    wanted = stage or STAGES[0]
    cache = options_for(header, kv, None, None, 256).cache
    if wanted not in trace.modules:
        optimise(module, replace(form, cache=cache), trace)
    about = str(header.metadata.get("general.name") or header.source)
    stages = list(trace.modules)
    before = tuple(trace.modules[earlier] for earlier in stages[: stages.index(wanted)])
    return Subject(name, about, wanted, trace.modules[wanted], header, before)


def _is_ir(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING


def _piped(name: str, stage: str | None) -> Subject:
    """Printed IR from a pipe, which can be read once."""
    told = "standard input" if name in STANDARD_INPUT else name
    content = sys.stdin.buffer.read() if name in STANDARD_INPUT else Path(name).read_bytes()
    if not content.startswith(BEGINNING):
        what = "does not begin as printed IR" if content else "is empty"
        raise BrioletteError(f"{told} {what}; only IR as `show` prints it can come from there, and only once")
    if stage is not None:
        raise BrioletteError(f"{told} is printed IR, which is at the stage it was printed at: leave @{stage} out")
    return _parsed(told, content)


def _parsed(name: str, content: bytes) -> Subject:
    try:
        module = parse_module(content.decode())
        if module.tensors or module.form == "blocks":
            verify(module)
    except UnicodeDecodeError:
        raise BrioletteError(f"{name} begins as IR but is no UTF-8 text") from None
    except BrioletteError as problem:
        raise BrioletteError(f"{name}: {problem}") from None
    except AssertionError as problem:
        raise BrioletteError(f"{name} is no program that the compiler makes: {problem}") from None
    return Subject(name, "printed IR", module.form, module)
