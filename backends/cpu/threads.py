"""Threads that enter the same native function: they spin between steps, and sleep when none comes."""

from __future__ import annotations

import ctypes
import threading

from .runtime_ir import FIELDS

# Turns of the spin loop before a thread goes to sleep: about a millisecond, far more than lies
# between two tokens of a running generation.
SPINS = 50_000

PROGRAM = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
WORKER = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Team:
    """The caller as thread 0 and `threads - 1` workers. One step at a time."""

    def __init__(self, context: int, threads: int, worker: int):
        self.context, self.threads = context, threads
        self.generation = ctypes.c_int64.from_address(context + FIELDS["generation"].offset)
        self.entry = ctypes.c_void_p.from_address(context + FIELDS["entry"].offset)
        ctypes.c_int64.from_address(context + FIELDS["threads"].offset).value = threads
        self.work = WORKER(worker)
        self.wake = threading.Condition()
        self.asleep = 0
        self.programs: dict[int, ctypes._FuncPointer] = {}
        self.workers = [threading.Thread(target=self._serve, args=(tid,), daemon=True) for tid in range(1, threads)]
        for thread in self.workers:
            thread.start()

    def run(self, program: int) -> None:
        """Runs the native program at an address on all threads; returns when all are done."""
        if program not in self.programs:
            self.programs[program] = PROGRAM(program)
        self._start(program)
        self.programs[program](self.context, 0)

    def close(self) -> None:
        """Sends the workers home."""
        if self.workers:
            self._start(None)
            for thread in self.workers:
                thread.join()
            self.workers = []

    def _start(self, program: int | None) -> None:
        if not self.workers:
            return
        self.entry.value = program
        with self.wake:
            self.generation.value += 1
            if self.asleep:
                self.wake.notify_all()

    def _serve(self, tid: int) -> None:
        seen = 0
        while True:
            seen = self.work(self.context, tid, seen, SPINS)
            with self.wake:
                if self.generation.value != seen and not self.entry.value:
                    return
                self.asleep += 1
                while self.generation.value == seen:
                    self.wake.wait()
                self.asleep -= 1
