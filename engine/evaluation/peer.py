"""llama.cpp as a subject of evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from briolette.compiler.errors import BrioletteError
from briolette.engine.peers import PeerProcess

from .subjects import ROWS, Logits

SCRIPTS = {"llama.cpp": "llama_cpp_logits.py"}


def spelled(kv: str) -> str:
    """Types of K and V with a slash between, from that or from one type for both."""
    return kv if kv.count("/") == 1 else f"{kv}/{kv}"


class Peer:
    """An engine of `SCRIPTS` that has loaded a model. Raises BrioletteError where it is not there, or cannot."""

    def __init__(self, name: str, python: Path, model: Path, threads: int, context: int, vocabulary: int):
        if name not in SCRIPTS:
            raise BrioletteError(f"--peer takes {' or '.join(SCRIPTS)}, not {name!r}")
        script = Path(__file__).with_name(SCRIPTS[name])
        options = ["--threads", threads, "--context", context]
        self.process = PeerProcess(name, python, script, model, options)
        self.name, self.version, self.vocabulary = name, self.process.version, vocabulary
        if self.process.told["vocabulary"] != vocabulary:
            self.close()
            theirs = self.process.told["vocabulary"]
            raise BrioletteError(f"{name} has {theirs} logits for a token of {model}, and we have {vocabulary}")

    def cache(self, kv: str, role: str = "cache") -> PeerCache:
        """The model with a cache of some type; "q8_0/q4_0" has one for K and one for V. Of each role, the latest one
        may be used; caches of several roles side by side."""
        return PeerCache(self, kv, role)

    def close(self) -> None:
        """Ends the process."""
        self.process.close()


class PeerCache:
    """One of a peer's caches. It lives as long as the peer."""

    def __init__(self, peer: Peer, kv: str, role: str):
        self.peer, self.engine, self.kv, self.role = peer, peer.name, kv, role

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See `subjects.Subject`."""
        ask, numbers = self.peer.process.ask, self.peer.process.numbers
        if "failed" in ask({"role": self.role, "kv": spelled(self.kv), "fill": list(ids[:first])}):
            raise BrioletteError(
                f"{self.engine} has no cache of type {self.kv}; types are such as f16, q8_0, q5_0, q4_0, or two with "
                "a slash between for K and V: q8_0/q4_0"
            )
        for at in range(first, len(ids), ROWS):
            part = list(ids[at : at + ROWS])
            ask({"role": self.role, "logits": part})
            yield numbers((len(part), self.peer.vocabulary))

    def close(self) -> None:
        """Nothing: others of the same process may go on."""
