"""A trace as a file: an .npz with one array a label, `__tokens__`, and `__about__`, a JSON text."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError

from ..writing import whole

FORMAT = "briolette-trace 1"
TOKENS, ABOUT = "__tokens__", "__about__"
Array = NDArray[Any]


@dataclass(frozen=True)
class Recording:
    """The values of one pass over tokens in a fresh context: label -> float32 or int32 [T, ...].

    `about` says who recorded what: `producer`, `model`, `spec`, `precision`, `kv`, whether the recording is
    `complete` (every value that is no view), and under `values` each label's op, place in the spec and shape.
    """

    tokens: NDArray[np.int32]
    values: dict[str, Array]
    about: dict[str, Any] = field(default_factory=dict)
    source: str = "the reference"  # what messages call it

    @property
    def producer(self) -> str:
        return str(self.about.get("producer", self.source))

    @property
    def precision(self) -> str:
        return str(self.about.get("precision", "f32"))

    def told(self, label: str) -> dict[str, Any]:
        """What the recorder told of a value: its `op`, `where`, `shape`, other `names`."""
        values = self.about.get("values", {})
        found = values.get(label, {}) if isinstance(values, dict) else {}
        return found if isinstance(found, dict) else {}

    def named(self) -> dict[str, Array]:
        """Every label with its value in the recording's order, those that `about` gives as further names too."""
        found: dict[str, Array] = {}
        for label, value in self.values.items():
            found[label] = value
            names = self.told(label).get("names")
            for name in names if isinstance(names, list) else ():
                if name not in self.values:
                    found[str(name)] = value
        return found


def save(path: str | Path, recording: Recording) -> None:
    """Writes a trace. A file of that name is replaced as a whole or not at all."""
    about = {"format": FORMAT, **recording.about}
    members = {**recording.values, TOKENS: recording.tokens, ABOUT: np.array(json.dumps(about))}
    try:
        with whole(Path(path)) as out, zipfile.ZipFile(out, "w") as archive:
            for name, value in members.items():  # np.savez takes no array of the name `file`
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
    except OSError as problem:
        raise BrioletteError(f"cannot write the trace {path}: {problem.strerror}") from None


def load(path: str | Path) -> Recording:
    """Reads a trace. Raises BrioletteError for a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile) or TOKENS not in stored:
                raise ValueError
            values = {name: stored[name] for name in stored.files}
    except OSError as problem:
        raise BrioletteError(f"cannot read the trace {path}: {problem.strerror or 'it is no .npz file'}") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
        raise BrioletteError(
            f"{path} is no trace: expected an .npz file with `{TOKENS}`, as `briolette trace MODEL -o FILE` writes it"
        ) from None
    tokens, about = values.pop(TOKENS), _about(path, values.pop(ABOUT, None))
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
        raise BrioletteError(
            f"{path} is no trace: `{TOKENS}` is a list of token ids, not {tokens.dtype} {tokens.shape}"
        )
    if tokens.min() < 0 or tokens.max() > np.iinfo(np.int32).max:
        raise BrioletteError(f"{path} is no trace: `{TOKENS}` has an id below 0 or beyond 32 bits")
    if not values:
        raise BrioletteError(f"{path} has no values: it holds `{TOKENS}` alone, so there is nothing to compare")
    for label, value in values.items():
        if not (np.issubdtype(value.dtype, np.floating) or np.issubdtype(value.dtype, np.integer)):
            raise BrioletteError(f"{path}: `{label}` holds {value.dtype}, where numbers are wanted")
    return Recording(tokens.astype(np.int32), values, about, Path(path).name)


def _about(path: str | Path, stored: Array | None) -> dict[str, Any]:
    try:
        about = json.loads(str(stored)) if stored is not None else {"format": FORMAT}
    except json.JSONDecodeError:
        about = None
    if not isinstance(about, dict):
        raise BrioletteError(f"{path}: `{ABOUT}` is no JSON object")
    if about.get("format") != FORMAT:
        raise BrioletteError(f"{path} is a trace of the format `{about.get('format')}`; this version reads `{FORMAT}`")
    return about
