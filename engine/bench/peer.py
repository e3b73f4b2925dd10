"""Another engine as a subject of measurements: a process of a Python that has it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError

from .measure import Case
from .ours import tokens

SCRIPTS = {"llama.cpp": "llama_cpp_speed.py"}
INSTALL = "`make peers` installs it into .venv-peers, and --peer-python says where else it is"


def script_of(name: str) -> Path:
    """What the Python that has an engine runs."""
    return Path(__file__).with_name(SCRIPTS[name])


class Peer:
    """An engine of `SCRIPTS`, loaded. Raises BrioletteError where it is not there, or cannot read the model."""

    def __init__(self, name: str, python: Path, model: Path, threads: int, context: int, kv: str, ids: int):
        if name not in SCRIPTS:
            raise BrioletteError(f"--peer takes {' or '.join(SCRIPTS)}, not {name!r}")
        if not python.is_file():
            raise BrioletteError(f"{name} cannot be measured: there is no Python {python}; {INSTALL}")
        self.name, self.threads, self.ids = name, threads, ids
        script = script_of(name)
        # -P: the folder of the script has modules of ours, which are none of its business.
        command = [str(python), "-P", str(script), str(model), "--threads", str(threads)]
        command += ["--context", str(context), "--kv", kv]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            told = self.answer(f"{name} cannot be measured: {python} does not have it; {INSTALL}")
            if not told["loaded"]:
                raise BrioletteError(f"{name} cannot load {model}: it may not know this architecture or its formats")
        except BrioletteError:
            self.close()
            raise
        self.version: str = told["version"]

    def fill(self, depth: int) -> None:
        """See `measure.Subject`."""
        self.ask({"fill": tokens(depth, 0, self.ids)})

    def run(self, case: Case) -> float:
        """See `measure.Subject`."""
        ids = tokens(case.tokens, case.depth, self.ids)
        return self.ask({case.kind: ids, "logits": case.logits})

    def work(self, case: Case) -> None:
        """See `measure.Subject`: how it goes about it is not known here."""

    def ask(self, request: dict[str, Any]) -> float:
        """Has something run; its seconds."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either, but last words
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        seconds: float = self.answer(f"{self.name} gave up")["seconds"]
        return seconds

    def answer(self, otherwise: str) -> dict[str, Any]:
        """The next line that the process writes. Raises BrioletteError where there is none, with its last words."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read().strip().splitlines()
            raise BrioletteError(f"{otherwise} ({said[-1]})" if said else otherwise)
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # of a request that nobody read
                    stream.close()
        self.process.wait()
