"""Threads that enter the same native function: they spin between steps, and sleep when none comes.

A step begins and ends inside one native call of thread 0, so a Python signal (Ctrl-C) finds it either not
begun or complete, never half done: other threads would be waiting in a barrier for ever. Python decides
only who sleeps.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from briolette.compiler.errors import BrioletteError

from .context import FIELDS

# Turns of the spin loop before a thread goes to sleep: about a millisecond, far more than lies
# between two tokens of a running generation.
SPINS = 50_000

# Seconds of sleep: a team that is dismissed by the very thread that falls asleep is not told.
LOOK_ANYWAY = 20.0

START = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
WORKER = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Team:
    """The caller as thread 0 and `threads - 1` workers. One step at a time; callers of two threads take turns.

    `context` is the address of the context, `worker` and `start` are addresses of the functions of
    `runtime_ir`. `keep` holds what those addresses point into, and the code of programs: a worker that
    is still on its way out of the last step, or has not yet noticed that the team is closed, may outlive
    the engine for a moment.
    """

    def __init__(self, context: int, threads: int, worker: int, start: int, keep: list[Any] | None = None):
        self.context, self.threads, self.keep = context, threads, keep or []
        self.work, self.start = WORKER(worker), START(start)
        self.closed = False
        self._field("threads").value = threads
        self._gather()

    def _field(self, name: str) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self.context + FIELDS[name].offset)

    def _gather(self) -> None:
        """Starts the workers of this process: at first, and again in a child, which inherits no threads."""
        self.process = os.getpid()
        self._field("arrived").value = 0  # another thread's step may have been on its way at the fork
        # Reentrant, since the collector may dismiss a team at any point, even inside its own worker.
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
        self.turn = threading.RLock()  # held by who makes a step
        self.due = False  # a step is about to begin, or on its way: nobody goes to sleep
        generation = self._field("generation").value
        self.workers = [
            threading.Thread(target=self._serve, args=(tid, generation), name=f"briolette-{tid}", daemon=True)
            for tid in range(1, self.threads)
        ]
        for thread in self.workers:
            thread.start()

    def mine(self) -> AbstractContextManager[Any]:
        """The lock of who makes a step. Threads that a fork left behind are started again."""
        if self.process != os.getpid() and not self.closed:
            self._gather()
        return self.turn

    def run(self, program: int, fields: Mapping[str, int]) -> None:
        """Runs the native program at an address on all threads, with these fields set in the context."""
        with self.mine():
            if self.closed:
                raise BrioletteError("this engine has been closed")
            for name, value in fields.items():
                self._field(name).value = value
            try:
                with self.lock:
                    self.due = True
                    self.wake.notify_all()
                self.start(self.context, program)
            finally:
                self.due = False

    def dismiss(self) -> None:
        """Sends the workers home, when nobody can start a step any more.

        Waits for nothing: the garbage collector calls this from any place in any thread, also in a worker.
        """
        self.closed = True
        if self.process == os.getpid():  # else they live in the parent
            with self.lock:
                self.wake.notify_all()

    def close(self) -> None:
        """Sends the workers home, after the step that is on its way if there is one, and sees them off."""
        with self.mine():
            self.dismiss()
        for thread in self.workers:
            thread.join()

    def _serve(self, tid: int, seen: int) -> None:
        while True:
            seen = self.work(self.context, tid, seen, SPINS)
            with self.lock:
                while not self.due and not self.closed:
                    self.wake.wait(LOOK_ANYWAY)
                if self.closed:
                    return
