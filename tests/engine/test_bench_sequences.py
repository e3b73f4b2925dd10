"""`briolette bench --sequences`: that every sequence is run, at its depth, and counted once; beside a stand-in peer."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import briolette
from briolette.backends.cpu.engine import CpuEngine
from briolette.engine.available import Available
from briolette.engine.bench import run as running
from briolette.engine.bench.measure import Case, Result, measure
from briolette.engine.bench.ours import Briolette
from briolette.engine.bench.profile import profile
from briolette.engine.bench.work import Step, Work

sys.path.insert(0, str(Path(__file__).parent))
from test_bench import E2B, LOOSE, MOE, Counted, called, little_memory  # noqa: F401  the last is a fixture
from test_bench_peer import stand_in

SIZES = ("--prompt", 0, "--generate", 3, "--repetitions", 1, "--threads", 1, "--chunk", 8)


@pytest.fixture
def loaded():
    """Six sequences of 48 positions."""
    model = briolette.load(E2B, threads=2, context=48, chunk=16, weights="mapped", sequences=6)
    yield Briolette(model)
    model.close()


def test_every_sequence_is_filled_and_stepped_at_its_depth(loaded, monkeypatch):
    """A cache that is not filled, or a sequence that is left out, would have other logits, or none."""
    case, seen = Case("decode", 3, 20, sequences=5), []
    batch = CpuEngine.batch

    def watched(engine, tokens, positions, sequences):
        found = batch(engine, tokens, positions, sequences)
        seen.append((list(tokens), list(positions), list(sequences), found.copy()))
        return found

    monkeypatch.setattr(CpuEngine, "batch", watched)
    loaded.fill(12, 2)  # of two, which then go on
    loaded.fill(20, 5)
    loaded.run(case)
    assert [(positions, sequences) for _, positions, sequences, _ in seen] == [
        ([20 + i] * 5, [0, 1, 2, 3, 4]) for i in range(3)
    ]
    alone = briolette.load(E2B, threads=1, context=48, chunk=16, weights="mapped")
    for sequence in range(5):
        alone.engine.step(loaded.tokens(20, 0), 0)
        for i, (tokens, _, _, logits) in enumerate(seen):
            assert np.allclose(logits[sequence], alone.engine.step([tokens[sequence]], 20 + i), atol=1e-4)
    assert len({tokens[0] for tokens in zip(*seen[0][:1], strict=True)}) == 5  # else all choose the same experts
    alone.close()


def test_what_a_run_overwrites_is_there_for_the_next(loaded):
    expected = []
    for case in (Case("decode", 20, 16, sequences=6), Case("decode", 4, 16, sequences=2)):
        loaded.fill(16, 6)
        loaded.run(case)
        assert all(loaded.engine.rewindable(16, 16, sequence) for sequence in range(6))
        expected.append(loaded.engine.batch([1] * 6, [16] * 6, range(6)).copy())
        loaded.restore()
    assert np.array_equal(*expected)


def test_the_rate_is_of_the_tokens_of_all_sequences():
    case = Case("decode", 4, sequences=8)
    assert (str(case), case.count) == ("decode 4 x 8", 32)
    assert Result("a", "f16", 1, case, None, [2.0, 4.0, 8.0]).rates == [16, 8, 4]


def test_caches_are_filled_for_the_most_sequences_of_a_depth():
    log: list[str] = []
    cases = [Case("decode", 2, depth, sequences=s) for depth, s in ((0, 1), (0, 4), (8, 2), (8, 3))]
    measure([(Counted("a", log), cases)], 1, lambda done, wanted: None)
    assert [line for line in log if "fills" in line] == ["a fills 0 of 4", "a fills 8 of 3"]
    assert log.count("a decode 2 x 4") == 2


def test_a_step_reads_weights_once_and_each_sequences_cache(loaded):
    def work(sequences: int, depth: int) -> Work:
        return loaded.work(Case("decode", 1, depth, sequences=sequences))

    one, four = work(1, 32), work(4, 32)
    cache = one.bytes - work(1, 16).bytes  # of 16 positions, as much as the layers read that see them
    assert work(4, 32).bytes - work(4, 16).bytes == pytest.approx(4 * cache)
    assert four.bytes - work(2, 32).bytes == pytest.approx(2 * (work(3, 32).bytes - work(2, 32).bytes))
    assert one.bytes < four.bytes < 1.5 * one.bytes
    assert four.macs == pytest.approx(4 * one.macs, rel=0.01)


def test_steps_are_of_the_programs_that_run_them(loaded):
    """A program takes so many tokens at most; more sequences take several of its steps."""
    assert loaded.steps(Case("decode", 2, 10, sequences=3)) == ("few", [Step(1, 11, 3)] * 2)
    assert loaded.steps(Case("decode", 1, 10, sequences=6)) == ("batch", [Step(1, 10, 6)])
    program, steps = loaded.steps(Case("decode", 2, 0, sequences=20))
    assert (program, steps) == ("batch", [Step(1, 1, 16), Step(1, 1, 4)] * 2)


@pytest.mark.parametrize(("sequences", "program"), [(3, "few"), (6, "batch")])
def test_a_profile_of_sequences_is_of_their_program(loaded, sequences, program):
    case = Case("decode", 3, 8, sequences=sequences)
    loaded.fill(8, sequences)
    spent = profile(loaded, case, 2)
    assert sum(part.calls for part in spent.parts) == len(loaded.engine.plan(program).steps)
    assert sum((part.work for part in spent.parts), Work()).bytes == pytest.approx(loaded.work(case).bytes)
    whole = sum(part.mean for part in spent.parts) + spent.waiting + spent.outside
    assert whole == pytest.approx(spent.seconds, rel=LOOSE)


# --- the command ------------------------------------------------------------------------------------


def test_json_has_the_sequences_of_every_test():
    found = json.loads(called(MOE, *SIZES, "--prompt", 4, "--depth", "0,9", "--sequences", "1,2", "-s", 9, "--json"))
    assert [(r["test"], r["tokens"], r["sequences"], r["depth"]) for r in found["results"]] == [
        test for depth in (0, 9) for test in (("prefill", 4, 1, depth), *(("decode", 3, s, depth) for s in (1, 2, 9)))
    ]
    for one in found["results"]:
        assert one["rate"] == pytest.approx(one["tokens"] * one["sequences"] / one["seconds"][0], rel=0.01)
    by = {r["sequences"]: r for r in found["results"] if r["test"] == "decode" and r["depth"] == 9}
    assert by[9]["bytes_per_token"] < by[2]["bytes_per_token"] < by[1]["bytes_per_token"]


def test_the_table_and_the_profile_name_the_sequences():
    text = called(E2B, *SIZES, "--sequences", "1,5", "--profile")
    rows = [line for line in text.splitlines() if line.startswith("  decode")]
    assert [row.split("  ")[1] for row in rows] == ["decode 3", "decode 3 x 5"]
    assert "decode 3 x 5 at depth 0, 1 thread, f32 cache: " in text


def test_a_peer_is_asked_for_the_same_sequences(tmp_path):
    """The stand-in takes a second for everything."""
    script, told = stand_in(tmp_path), tmp_path / "told"
    text = script.read_text().replace('"9.9"', '" ".join(sys.argv[4:])')
    script.write_text(text.replace("    known =", f"    open({str(told)!r}, 'a').write(line)\n    known ="))
    peer = ("--peer", "llama.cpp", "--peer-python", script)
    found = json.loads(called(E2B, *SIZES, "--depth", 5, "--sequences", "1,4", *peer, "--json"))
    assert found["versions"]["llama.cpp"] == "--threads 1 --context 8 --sequences 4"
    theirs = [r for r in found["results"] if r["engine"] == "llama.cpp"]
    assert [(r["sequences"], r["rate"]) for r in theirs] == [(1, 3.0), (4, 12.0)]
    for one in found["results"]:
        if one["engine"] == "briolette":
            assert one["ratios"]["f32"] == pytest.approx(one["rate"] / (3 * one["sequences"]), rel=0.01)
    requests = [json.loads(line) for line in told.read_text().splitlines()]
    assert {tuple(map(len, r["decode"])) for r in requests if "decode" in r} == {(1, 1, 1), (4, 4, 4)}
    assert [r["fill"] for r in requests if "fill" in r] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--sequences", "0"), "--sequences takes numbers from 1 to 256, not 0"),
        (("--sequences", "2,0"), "--sequences takes numbers from 1 to 256, not 2,0"),
        (("--sequences", "257"), "from 1 to 256, not 257"),
        (("--sequences", "four"), "--sequences takes numbers with commas between them, such as 64,512, not 'four'"),
        (("--sequences", "-1"), "--sequences takes numbers"),
        (("--sequences", "2"), "--generate 0 leaves decoding out"),
    ],
)
def test_mistakes_are_told_in_a_sentence(given, told):
    assert told in called(E2B, "--generate", 0 if "--generate 0" in told else 3, *given, code=2)


def test_more_than_memory_holds_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(running, "available_memory", lambda: Available(300 << 20, "a test gives"))
    assert json.loads(called(E2B, *SIZES, "--ctx", 100000, "--json"))["results"]
    found = called(E2B, *SIZES, "--sequences", 64, "--ctx", 100000, code=2)
    assert "with 64 sequences of 100000 tokens" in found
    assert "more than the 300.0 MiB that a test gives: fewer --sequences" in found


def test_a_synthetic_models_plan_has_the_caches_of_all_sequences(monkeypatch):
    from briolette.engine.commands import bench

    monkeypatch.setattr(bench, "available_memory", lambda: Available(1 << 20, "a test gives"))
    takes = []
    for sequences in (1, 256):
        told = called("--synthetic", "gemma4-e2b:1", "--depth", 1000, "--sequences", sequences, code=2)
        number, unit = re.search(r"takes ([\d.]+) ([MG])iB", told).groups()
        takes.append(float(number) * {"M": 1, "G": 1024}[unit])
    assert takes[1] - takes[0] > 255 * 512 * 2 * 256 * 2 / 2**20  # of K and V in f16, at least the window
