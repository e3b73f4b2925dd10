"""Another engine as a subject of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.compiler.opset.attention import CACHE_DTYPES
from briolette.engine.peers import PeerProcess

from .measure import Case
from .ours import side_by_side, tokens

SCRIPTS = {"llama.cpp": "llama_cpp_speed.py"}
ELSE = "f16"  # its cache beside policies of ours, which it does not have


def script_of(name: str) -> Path:
    """What the Python that has an engine runs."""
    return Path(__file__).with_name(SCRIPTS[name])


@dataclass(frozen=True)
class Beside:
    """A peer to take turns with: the Python that has it, and the types of its caches; none for those of ours."""

    name: str
    python: Path
    caches: tuple[str, ...] = ()

    def types(self, ours: Sequence[str]) -> tuple[str, ...]:
        """The types of its caches, with ours of such types or policies."""
        return self.caches or tuple(dict.fromkeys(kv if kv in CACHE_DTYPES else ELSE for kv in ours))


class Peer:
    """An engine of `SCRIPTS` that has loaded a model. context: positions of each of `sequences`. Raises BrioletteError
    where it is not there, or cannot."""

    def __init__(self, name: str, python: Path, model: Path, threads: int, context: int, ids: int, sequences: int = 1):
        if name not in SCRIPTS:
            raise BrioletteError(f"--peer takes {' or '.join(SCRIPTS)}, not {name!r}")
        self.name, self.threads, self.ids = name, threads, ids
        options = ["--threads", threads, "--context", context, "--sequences", sequences]
        self.process = PeerProcess(name, python, script_of(name), model, options)
        self.version = self.process.version

    def close(self) -> None:
        """Ends the process."""
        self.process.close()


class PeerCache:
    """A peer with a cache of some type; "q8_0/q4_0" has one for K and one for V. It lives as long as the peer."""

    def __init__(self, peer: Peer, kv: str):
        self.peer, self.name, self.kv, self.threads = peer, peer.name, kv, peer.threads

    def fill(self, depth: int, sequences: int = 1) -> None:
        """See `measure.Subject`. What it has filled once it keeps, for the turns with other engines of ours, and gives
        to every sequence that a case has."""
        self.ask({"fill": tokens(depth, 0, self.peer.ids)})

    def run(self, case: Case) -> float:
        """See `measure.Subject`."""
        if case.kind == "decode":
            return self.ask({"decode": side_by_side(case, self.peer.ids)})
        return self.ask({"prefill": tokens(case.tokens, case.depth, self.peer.ids), "logits": case.logits})

    def work(self, case: Case) -> None:
        """See `measure.Subject`: how it goes about it is not known here."""

    def ask(self, request: dict[str, Any]) -> float:
        """Has something run; its seconds. Raises BrioletteError where it has no such cache."""
        keys, _, values = self.kv.partition("/")
        answer = self.peer.process.ask({"kv": [keys, values or keys]} | request)
        if "seconds" not in answer:
            raise BrioletteError(
                f"{self.name} has no cache of type {self.kv}; types are such as f16, q8_0, q5_0, q4_0, or two with "
                "a slash between for K and V: q8_0/q4_0"
            )
        seconds: float = answer["seconds"]
        return seconds
