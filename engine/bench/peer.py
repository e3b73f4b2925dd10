"""Another engine as a subject of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.peers import PeerProcess

from .measure import Case
from .ours import tokens

SCRIPTS = {"llama.cpp": "llama_cpp_speed.py"}


def script_of(name: str) -> Path:
    """What the Python that has an engine runs."""
    return Path(__file__).with_name(SCRIPTS[name])


class Peer:
    """An engine of `SCRIPTS`, loaded. Raises BrioletteError where it is not there, or cannot read the model."""

    def __init__(self, name: str, python: Path, model: Path, threads: int, context: int, kv: str, ids: int):
        if name not in SCRIPTS:
            raise BrioletteError(f"--peer takes {' or '.join(SCRIPTS)}, not {name!r}")
        self.name, self.threads, self.ids = name, threads, ids
        options = ["--threads", threads, "--context", context, "--kv", kv]
        self.process = PeerProcess(name, python, script_of(name), model, options)
        self.version = self.process.version

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
        seconds: float = self.process.ask(request)["seconds"]
        return seconds

    def close(self) -> None:
        """Ends the process."""
        self.process.close()
