"""Other engines to compare with: processes of a Python that has them, which ours need not have."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError

INSTALL = "`make peers` installs it into .venv-peers, and --peer-python says where else it is"


class PeerProcess:
    """A script that answers one JSON object a line with another; its first line has `version` and `loaded`.

    Raises BrioletteError where the Python, what the script imports, or an engine for the model is not there.
    """

    def __init__(self, name: str, python: Path, script: Path, model: Path, options: Sequence[object]):
        self.name = name
        if not python.is_file():
            raise BrioletteError(f"{name} cannot be measured: there is no Python {python}; {INSTALL}")
        # -P: the folder of the script has modules of ours, which are none of its business.
        command = [str(python), "-P", str(script), str(model), *map(str, options)]
        # Its last words, in a file: a pipe that nobody reads would stop a talkative process once it is full.
        self.words = tempfile.TemporaryFile()  # noqa: SIM115  `close` does
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words)
        try:
            self.told = self.answer(f"{name} cannot be measured: {python} does not have it; {INSTALL}")
            if not self.told["loaded"]:
                raise BrioletteError(f"{name} cannot load {model}: it may not know this architecture or its formats")
        except BaseException:
            self.close()
            raise
        self.version: str = self.told["version"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Has something done; the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either, but last words
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        return self.answer(f"{self.name} gave up")

    def answer(self, otherwise: str) -> dict[str, Any]:
        """The next line that the process writes. Raises BrioletteError where there is none, with its last words."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self.ended(otherwise)
        found: dict[str, Any] = json.loads(line)
        return found

    def numbers(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """float32 of a shape, which follow an answer as bytes. Raises BrioletteError where they end too early."""
        assert self.process.stdout is not None
        found = np.empty(shape, np.float32)
        rest = memoryview(found).cast("B")
        while rest:
            count = self.process.stdout.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise self.ended(f"{self.name} gave up")
            rest = rest[count:]
        return found

    def ended(self, otherwise: str) -> BrioletteError:
        """What to say of a process that says no more."""
        code = self.process.wait()
        self.words.seek(0)
        said = self.words.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            said.append(signal.strsignal(-code) or f"signal {-code}")
        return BrioletteError(f"{otherwise} ({said[-1]})" if said else otherwise)

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.words):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # of a request that nobody read
                    stream.close()
        self.process.wait()
