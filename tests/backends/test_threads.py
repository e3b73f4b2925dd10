"""The thread team: sleep and wake, interruption, forks, the ends of engines and of the process."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from programs import Program, T

from briolette.backends.cpu.engine import CpuEngine
from briolette.backends.cpu.threads import SPINS
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ops import node


def made(threads: int, seed: int = 0) -> tuple[CpuEngine, np.ndarray]:
    """An engine of several waves, and the results of its tokens one by one."""
    p = Program(seed=seed)
    x = node("embed", p.weight("table", 8, 64), node("tokens", rows=T))
    for layer in range(6):
        h = node("rms_norm", x, eps=1e-6)
        x = node("add", x, node("linear", h, p.weight(f"w{layer}", 64, 64)))
    engine = p.engine(x, threads)
    return engine, np.concatenate([engine.step([i], 0) for i in range(8)])


def alive() -> int:
    return sum(t.name.startswith("briolette-") for t in threading.enumerate())


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 16])
def test_every_number_of_threads_computes_the_same(threads):
    (one, expected), (engine, found) = made(1), made(threads)
    assert np.array_equal(found, expected)
    one.close()
    engine.close()


@pytest.mark.parametrize("threads", [2, 5])
def test_steps_at_all_intervals(threads):
    """Steps that find the workers spinning, asleep, and on their way from one to the other."""
    engine, expected = made(threads)
    dice = random.Random(1)
    for turn in range(400):
        if turn % 2:
            time.sleep(dice.choice([0, 1e-4, 5e-4, 1e-3, 2e-3, 4e-3]))
        token = dice.randrange(8)
        assert np.array_equal(engine.step([token], 0)[0], expected[token])
    engine.close()


def test_idle_workers_sleep():
    engine, _ = made(4)
    assert SPINS < 1_000_000
    time.sleep(0.1)  # by now they have stopped spinning
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.03
    engine.close()


def test_closing_ends_the_threads():
    before = alive()
    engine, _ = made(4)
    assert alive() == before + 3
    engine.close()
    engine.close()
    assert alive() == before
    with pytest.raises(BrioletteError, match="closed"):
        engine.step([1], 0)


def test_garbage_ends_the_threads():
    before = alive()
    engine, _ = made(3)
    cycle = [engine]
    cycle.append(cycle)  # found by the collector only, which may run in any thread
    del engine, cycle
    gc.collect()
    assert eventually(lambda: alive() == before)


def test_a_worker_that_collects_its_own_engine(monkeypatch):
    """The collector runs wherever an object is made, so also in a worker of the engine it takes away."""
    monkeypatch.setattr("briolette.backends.cpu.threads.LOOK_ANYWAY", 0.1)
    before = alive()
    engine, _ = made(3)
    team, waiting = engine.team, engine.team.wake.wait

    def collecting(timeout: float) -> bool:
        team.dismiss()
        return waiting(timeout)

    team.wake.wait = collecting
    engine.step([1], 0)
    assert eventually(lambda: alive() == before)


def test_closing_waits_for_the_step_of_another_thread():
    engine, expected = made(2)
    wrong, closed = [], []

    def work() -> None:
        while True:
            try:
                if not np.array_equal(engine.step([3], 0)[0], expected[3]):
                    wrong.append(1)
            except BrioletteError:
                closed.append(1)
                return

    other = threading.Thread(target=work)
    other.start()
    time.sleep(0.02)
    engine.close()
    other.join(10)
    assert closed == [1]
    assert not wrong


def test_callers_of_several_threads_take_turns():
    engine, expected = made(3)
    wrong: list[int] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(100):
            tokens = [dice.randrange(8) for _ in range(dice.randrange(1, 4))]
            found = engine.step(tokens, 0, "all")
            wrong.extend(
                t for t, row in zip(tokens, found, strict=True) if not np.allclose(row, expected[t], atol=1e-4)
            )

    callers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong
    engine.close()


def test_two_engines_at_once():
    (one, first), (two, second) = made(2, seed=1), made(3, seed=2)
    for token in range(8):
        assert np.array_equal(one.step([token], 0)[0], first[token])
        assert np.array_equal(two.step([token], 0)[0], second[token])
    one.close()
    two.close()


class InterruptError(Exception):
    """What the signal handler raises, as Python does for Ctrl-C."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that interrupt")
def test_interruption_at_any_moment():
    """Steps after an interrupted one are right, wherever it was interrupted."""
    engine, expected = made(3)

    def raise_interrupt(*args: object) -> None:
        raise InterruptError

    before = signal.signal(signal.SIGALRM, raise_interrupt)
    dice, interrupted = random.Random(2), 0
    try:
        for _ in range(300):
            token = dice.randrange(8)
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(2e-5, 6e-4))
                for _ in range(20):
                    engine.step([token], 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except InterruptError:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert np.array_equal(engine.step([token], 0)[0], expected[token])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 50
    engine.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("closes", [True, False])
def test_a_forked_child_has_threads_of_its_own(closes):
    engine, expected = made(3)
    child = os.fork()
    if child == 0:
        fine = False
        try:
            signal.alarm(20)
            fine = all(np.array_equal(engine.step([t], 0)[0], expected[t]) for t in range(8))
            if closes:
                engine.close()
        finally:
            os._exit(0 if fine else 1)
    assert np.array_equal(engine.step([5], 0)[0], expected[5])
    assert os.waitpid(child, 0)[1] == 0
    engine.close()


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_threads import made
engine, _ = made(4)
print(engine.step([1], 0).shape)
"""


def test_a_process_ends_with_engines_open():
    script = SCRIPT.format(folder=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 64)\n", "")


def test_an_engine_may_go_while_its_workers_leave_the_last_step():
    """The code a worker returns through must outlive the engine: this crashed the process when it did not."""
    script = (
        "import sys, briolette\nfor _ in range(40):\n    briolette.load(sys.argv[1], threads=4).logits([3, 4, 5])\n"
    )
    path = Path(__file__).resolve().parents[1] / "oracle" / "models" / "llama_plain.gguf"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=120)
