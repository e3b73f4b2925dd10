"""`briolette bench`: what it counts and tells; how fast anything is, no test says."""

from __future__ import annotations

import json
import mmap
import re
import time
import weakref
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

import briolette
from briolette.backends import formats
from briolette.backends.cpu import ceilings
from briolette.backends.cpu import engine as cpu
from briolette.backends.cpu.ceilings import Ceilings
from briolette.backends.cpu.emit import Emitter, layout_of
from briolette.compiler.pipeline import front
from briolette.engine.available import Available
from briolette.engine.bench.chart import Panel, Point, figure
from briolette.engine.bench.measure import Case, measure
from briolette.engine.bench.ours import Briolette
from briolette.engine.bench.profile import profile
from briolette.engine.bench.sizes import shortened, sizes
from briolette.engine.bench.synthetic import random_blocks, repeated, stored_bytes, synthetic
from briolette.engine.bench.work import Step, Work
from briolette.engine.cli import app
from briolette.engine.source import architecture
from briolette.spec import syntax

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
E2B, MOE = MODELS / "gemma4_e2b.gguf", MODELS / "gemma4_moe.gguf"
MOST = 1.5  # of a ceiling: what a noisy machine may seem to reach


def called(*args: object, code: int = 0) -> str:
    """What `briolette bench` prints; on stderr where it is a mistake."""
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", *map(str, args)], prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stderr if code else found.stdout


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    """Ceilings are measured on less memory and in less time: their height does not matter here."""
    monkeypatch.setattr(ceilings, "LEAST", 8 << 20)
    monkeypatch.setattr(ceilings, "CACHES", 0)
    monkeypatch.setattr(ceilings, "SECONDS", 0.001)


# --- ceilings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_ceilings_are_measured(threads):
    found = ceilings.measure(threads)
    assert found.threads == threads
    assert min(found.read, found.integers, found.floats) > 1e6


def test_the_better_of_two_measurements_counts():
    assert Ceilings(2, 5, 6, 7).best(Ceilings(2, 9, 1, 8)) == Ceilings(2, 9, 6, 8)


# --- turns ------------------------------------------------------------------------------------------


class Counted:
    """A subject that takes no time and writes down what it is asked."""

    kv, threads = "f32", 1

    def __init__(self, name: str, log: list[str]):
        self.name, self.log, self.runs = name, log, 0

    def fill(self, depth: int, sequences: int = 1) -> None:
        self.log.append(f"{self.name} fills {depth}" + (f" of {sequences}" if sequences > 1 else ""))

    def run(self, test: Case) -> float:
        self.log.append(f"{self.name} {test}")
        self.runs += 1
        return float(self.runs)

    def work(self, test: Case) -> Work | None:
        return None


def test_engines_take_turns_and_the_first_run_does_not_count():
    log: list[str] = []
    steps: list[tuple[int, int]] = []
    tests = [Case("prefill", 8, 0), Case("decode", 2, 0), Case("decode", 2, 16)]
    a, b = Counted("a", log), Counted("b", log)
    found = measure([(a, tests), (b, tests[:1])], 2, lambda done, wanted: steps.append((done, wanted)))
    turn = ["a prefill 8", "b prefill 8", "a decode 2"]
    assert log == ["a fills 0", "b fills 0", *turn * 3, "a fills 16", *["a decode 2"] * 3]
    assert steps == [(i + 1, 12) for i in range(12)]
    assert [one.seconds for one in found] == [[3.0, 5.0], [2.0, 3.0], [4.0, 6.0], [8.0, 9.0]]
    assert found[0].rates == [8 / 3, 8 / 5]


# --- what is run ------------------------------------------------------------------------------------


def test_a_depth_is_what_the_cache_holds_in_every_run():
    """Rings forget what a test overwrites, and have it again for the next."""
    model = briolette.load(E2B, threads=2, context=256, chunk=16, weights="mapped")
    subject = Briolette(model)
    subject.fill(100)
    expected = model.engine.step(subject.tokens(3, 100), 100).copy()
    for test in (Case("prefill", 90, 100), Case("decode", 40, 100), Case("prefill", 60, 100, "all")):
        subject.restore()
        subject.run(test)
        assert model.engine.rewindable(100, 100)
        assert np.array_equal(model.engine.step(subject.tokens(3, 100), 100), expected)
    model.close()


def test_the_work_of_a_test_is_that_of_its_steps():
    model = briolette.load(E2B, threads=1, context=256, chunk=16, weights="mapped")
    subject = Briolette(model)
    program, steps = subject.steps(Case("prefill", 40, 8))
    assert (program, steps) == ("prefill", [Step(16, 8), Step(16, 24), Step(8, 40)])
    assert subject.steps(Case("prefill", 40, 0, "all"))[0] == "all"
    once, twice = (subject.work(Case("decode", n, 32)) for n in (1, 2))
    assert twice.bytes == pytest.approx(2 * once.bytes, rel=0.01)
    deep = subject.work(Case("decode", 1, 64))
    assert deep.bytes > once.bytes  # a longer cache is read
    weights = sum(
        len(model.file.tensor_bytes(t.name)) for t in model.module.tensors if t.name != "per_layer_token_embd.weight"
    )
    assert weights < once.bytes < 1.3 * weights  # the head is the table that tokens are looked up in
    assert once.integers == 0  # mapped weights are multiplied in f32
    model.close()


@pytest.mark.parametrize(("prefill", "bits"), [("exact", 16), ("fast", 8)])
def test_activations_of_16_bits_are_multiplied_twice(prefill, bits, gemma3_path):
    model = briolette.load(gemma3_path, threads=1, context=64, weights="packed", prefill=prefill)
    work = Briolette(model).work(Case("prefill", 32))
    assert work.integers * 8 / bits + work.floats == pytest.approx(work.macs)
    assert work.floats < 0.02 * work.macs
    model.close()


# --- the command ------------------------------------------------------------------------------------

SIZES = ("--prompt", 24, "--generate", 4, "--repetitions", 2)


@pytest.mark.parametrize("model", [E2B, MOE], ids=["e2b", "moe"])
def test_json_has_every_combination_with_shares_of_the_ceilings(model):
    found = json.loads(called(model, *SIZES, "--depth", "0,32", "--threads", "1,2", "--logits", "last,all", "--json"))
    assert set(found) == {"machine", "versions", "model", "options", "repetitions", "ceilings", "results"}
    assert [one["threads"] for one in found["ceilings"]] == [1, 2]
    cases = {(r["threads"], r["depth"], r["test"], r["tokens"], r["logits"]) for r in found["results"]}
    wanted = [("prefill", 24, "last"), ("prefill", 24, "all"), ("decode", 4, "last")]
    assert cases == {(t, d, *test) for t in (1, 2) for d in (0, 32) for test in wanted}
    assert len(found["results"]) == len(cases)
    for one in found["results"]:
        assert len(one["seconds"]) == 2
        assert 0 < one["lowest"] <= one["rate"] <= one["highest"]
        assert 0 < one["read_share"] < MOST
        assert 0 < one["arithmetic_share"] < MOST
        assert one["bytes_per_token"] > 0 < one["macs_per_token"]


def test_caches_and_kinds_of_prefill_are_measured_one_engine_at_a_time(monkeypatch):
    """An engine is gone before the next is made: two may not fit. Decoding does not depend on the prefill."""
    policy, engines, alive = "global=k:f32,v:bf16;local=f16", [], []
    compiled = cpu.CpuEngine.__init__

    def made(engine, *given, **options):
        alive.append(sum(each() is not None for each in engines))
        engines.append(weakref.ref(engine))
        compiled(engine, *given, **options)

    monkeypatch.setattr(cpu.CpuEngine, "__init__", made)
    given = (*SIZES, "--prefill", "exact,fast", "--kv", policy, "--kv", "f16", "--threads", 1, "--ctx", 64)
    outcome = CliRunner().invoke(app, ["bench", str(E2B), *map(str, given), "--weights", "mapped", "--json"])
    found = json.loads(outcome.stdout)
    assert [(r["kv"], r["engine"], r["test"]) for r in found["results"]] == [
        (kv, *test)
        for kv in (policy, "f16")
        for test in (("briolette", "prefill"), ("briolette", "decode"), ("briolette, fast prefill", "prefill"))
    ]
    assert found["options"]["kv"] == [policy, "f16"]
    assert alive == [0, 0, 0, 0]
    assert "--prefill fast does nothing here: weights are mapped" in outcome.stderr


def test_the_table_has_a_row_for_each_test():
    lines = called(E2B, *SIZES, "--threads", 2, "--prompt", "8,16").splitlines()
    assert sum(line.startswith(("  prefill ", "  decode ")) for line in lines) == 4
    assert sum("GB/s" in line and "%" in line for line in lines) == 4


# --- profiles ---------------------------------------------------------------------------------------

LOOSE = 0.02  # of a step: the clock's ticks are compared with seconds by reading both


@pytest.mark.parametrize("model", [E2B, MOE], ids=["e2b", "moe"])
def test_the_parts_of_a_profile_add_up(model):
    found = json.loads(called(model, *SIZES, "--threads", "1,2", "--depth", 8, "--profile", "--json"))["profiles"]
    assert [(p["threads"], p["test"], p["depth"]) for p in found] == [
        (threads, test, 8) for threads in (1, 2) for test in ("prefill", "decode")
    ]
    for one in found:
        parts = [*one["parts"], one["waiting"], one["python"]]
        assert all(part["share"] >= 0 for part in parts)
        assert sum(part["share"] for part in parts) == pytest.approx(1, abs=LOOSE)
        assert sum(p["ms_per_token"] for p in parts) == pytest.approx(one["ms_per_token"], rel=LOOSE)


def test_every_kernel_of_the_step_is_in_a_part_with_its_lines():
    found = json.loads(called(E2B, *SIZES, "--threads", 1, "--profile", "--json"))["profiles"][1]
    model = briolette.load(E2B, threads=1, context=64)
    steps = model.engine.plan("decode").steps
    assert sum(part["calls"] for part in found["parts"]) == len(steps)
    kernels = {part["kernel"]: part for part in found["parts"]}
    gate = next(part for name, part in kernels.items() if name.startswith("ffn_gate + ffn_up F32"))
    line = next(i for i, text in enumerate(model.tree.source.splitlines(), 1) if "ffn_gate)) *" in text)
    assert gate["block"] == "ffn"
    assert gate["lines"] == [line]
    assert any(name.startswith("attend") and "window" in name for name in kernels)
    assert any(name.startswith("attend") and "all positions" in name for name in kernels)
    assert any("to cache" in name for name in kernels)
    assert kernels["likeliest tokens"]["calls"] == 2
    assert not any("experts" in name for name in kernels)


def test_the_work_of_all_parts_is_that_of_the_step():
    model = briolette.load(MOE, threads=2, context=64, weights="mapped")
    subject = Briolette(model)
    for case in (Case("prefill", 20, 4), Case("decode", 3, 4)):
        subject.fill(4)
        spent = profile(subject, case, 1)
        whole = sum((part.work for part in spent.parts), Work())
        assert whole.bytes == pytest.approx(subject.work(case).bytes)
        assert whole.macs == pytest.approx(subject.work(case).macs)
    model.close()


def test_profiled_programs_compute_the_same():
    model = briolette.load(E2B, threads=2, context=64)
    engine, ids = model.engine, [3, 1, 4, 1, 5]
    wanted = engine.step(ids, 0).copy()
    with engine.profiling() as taken:
        begin = time.perf_counter()
        assert np.array_equal(engine.step(ids, 0), wanted)
        seconds = time.perf_counter() - begin
    inside = taken["prefill"].kernels.sum(axis=1) + taken["prefill"].waits.sum(axis=1)
    assert (inside > 0).all()
    assert inside[0] <= (1 + LOOSE) * seconds
    assert set(taken) == {"prefill"}
    assert (taken["prefill"].kernels >= 0).all()
    assert taken["prefill"].kernels.shape == (2, len(taken["prefill"].plan.steps))
    assert np.array_equal(engine.step(ids, 0), wanted)  # and so does the ordinary program, after it
    model.close()


def test_ordinary_programs_read_no_clock():
    model = briolette.load(E2B, threads=2, context=64)
    planned = model.engine.plan("decode")
    layout = layout_of([planned])
    texts = {}
    for profiled in (False, True):
        emitter = Emitter(model.engine.target, profiled)
        emitter.program("decode", planned, layout)
        texts[profiled] = str(emitter.module)
    readings = texts[True].count('= call i64 @"llvm.read')
    within = 2 * sum(step.node.op == "attend" for step in planned.steps)  # barriers between the parts of a step
    assert readings == 1 + len(planned.steps) + planned.waves + 2 * within
    assert "counter" not in texts[False]
    assert len(texts[False].splitlines()) < len(texts[True].splitlines())


def test_a_profile_is_told_as_a_table():
    text = called(E2B, *SIZES, "--threads", 2, "--profile")
    for case in ("prefill 24", "decode 4"):
        rows = text.split(f"{case} at depth 0, 2 threads, f32 cache: ")[1].split("in all")[0]
        assert "waiting at barriers" in rows
        assert "attend 4 x" in rows


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--prompt", "many"), "--prompt takes numbers"),
        (("--depth", "-1"), "--depth takes numbers"),
        (("--threads", "1,x"), "--threads takes numbers"),
        (("--threads", "0"), "from 1 to"),
        (("--prompt", 0, "--generate", 0), "nothing to measure"),
        (("--prefill", "quick"), "--prefill takes exact or fast, not 'quick'"),
        (("--logits", "some"), "--logits takes last or all"),
        (("--kv", "q9"), "no KV cache type"),
        (("--ctx", 511), "a context of 511 tokens has no room for 512"),
        (("--peer-kv", "q8_0"), "--peer-kv says how a peer keeps its cache: give --peer llama.cpp, too"),
    ],
)
def test_mistakes_are_told_in_a_sentence(given, told):
    assert told in called(E2B, *given, code=2)


def test_a_missing_model_is_told(tmp_path):
    assert "there is no such file" in called(tmp_path / "none.gguf", code=2)


# --- models of true sizes ---------------------------------------------------------------------------

# Tensors of published files, by format where that was told of a Q4_K_M file.
PUBLISHED = {"gemma4-e2b": 601, "gemma4-e4b": 720, "gemma4-12b": 667, "gemma4-26b-a4b": 658, "gemma4-31b": 833}
A4B = {"f32": 392, "q5_0": 32, "q8_0": 28, "q4_k": 192, "q6_k": 14}
A4B_GIB = 15.63


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_published_files(name):
    header = sizes(name).header
    assert len(header.tensors) == PUBLISHED[name]
    if name == "gemma4-26b-a4b":
        assert Counter(t.format for t in header.tensors.values()) == A4B
        assert sum(map(stored_bytes, header.tensors.values())) / 2**30 == pytest.approx(A4B_GIB, abs=0.005)
    assert set(PUBLISHED) == set(syntax.sizes())


@pytest.mark.parametrize("layers", ["", ":1", ":2", ":5", ":11"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_spec_reads_every_tensor_of_a_model_of_so_many_layers(name, layers):
    header = sizes(name + layers).header
    module = front(architecture(None, header), header)  # raises where a tensor or a key is left over
    assert not layers or dict(module.params)["L"] == int(layers[1:])


def test_fewer_layers_keep_the_proportions_of_their_kinds():
    assert shortened("LLLLGLLLLG", 1) == "L"
    assert shortened("LLLLGLLLLG", 2) == "LG"
    assert shortened("LLLLGLLLLG", 5) == "LLLLG"
    assert shortened("LLGllg", 4) == "LGlg"
    assert shortened("LLGllg", 6) == "LLGllg"


@pytest.mark.parametrize("name", [*(n for n, f in formats.FORMATS.items() if n != "mxfp4")])
def test_random_blocks_are_ordinary_numbers(name):
    blocks = random_blocks(name, 1 << 16, 0.02)
    assert blocks.nbytes % mmap.PAGESIZE == 0
    values = formats.decode(name, blocks.reshape(-1, formats.get(name).bytes))
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(0.02, rel=0.1)
    assert abs(values.mean()) < 0.004


def test_a_pattern_is_shown_again_and_again():
    pattern = random_blocks("q4_k", 1 << 16, 0.02)
    size = 3 * pattern.nbytes + 144
    shown = repeated(pattern, size)
    assert shown.nbytes == size
    assert np.array_equal(shown, np.resize(pattern, size))


def test_what_is_read_in_place_has_memory_of_its_own():
    file = synthetic(sizes("gemma4-e2b:2"), {"per_layer_model_proj.weight"})
    own, shown = file.tensor_bytes("per_layer_model_proj.weight"), file.tensor_bytes("token_embd.weight")
    assert own.nbytes == 2 * 2 * 256 * 1536
    assert np.shares_memory(file.tensor_bytes("per_layer_model_proj.weight"), own)
    assert shown.nbytes == 262144 * 1536 // 256 * 210
    assert np.shares_memory(shown, file.tensor_bytes("per_layer_token_embd.weight"))
    freqs = file.tensor_bytes("rope_freqs.weight").view("<f4")
    assert (freqs[:64] == 1).all()
    assert (freqs[64:] == np.float32(1e30)).all()


def test_a_model_of_true_sizes_runs_without_a_file():
    command = ("--synthetic", "gemma4-e2b:1", "--prompt", 4, "--generate", 2, "--repetitions", 1, "--json")
    found = json.loads(called(*command))
    assert found["model"]["file"] is None
    assert found["model"]["synthetic"] == "gemma4-e2b:1"
    assert [(one["test"], one["tokens"]) for one in found["results"]] == [("prefill", 4), ("decode", 2)]


def test_a_synthetic_model_computes_finite_numbers():
    file = synthetic(sizes("gemma4-e2b:2"))
    model = briolette.load(file, threads=2, context=16, weights="packed")
    logits = model.engine.step([1, 2, 3], 0)
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    model.close()


def test_memory_for_the_ceilings_is_planned_too(monkeypatch):
    monkeypatch.setattr(ceilings, "LEAST", 1 << 50)
    monkeypatch.setattr(ceilings, "MOST", 1 << 50)
    assert "gemma4-e2b:1 takes 1024." in called("--synthetic", "gemma4-e2b:1", code=2)  # TiB


def test_what_does_not_fit_is_refused_with_the_numbers_of_the_plan(monkeypatch):
    from briolette.engine.commands import bench

    monkeypatch.setattr(bench, "available_memory", lambda: Available(4 << 30, "a test gives"))
    told = called("--synthetic", "gemma4-31b", code=2)
    assert "gemma4-31b takes 18." in told
    assert "4.00 GiB that a test gives" in told
    assert "gemma4-31b:LAYERS" in told


def test_logits_of_all_tokens_are_planned_and_caches_by_the_largest(monkeypatch):
    from briolette.engine.commands import bench

    def taken(*given: object) -> float:
        """GiB that a model would take, where there is nothing."""
        told = called("--synthetic", "gemma4-31b:6", "--prompt", 512, *given, code=2)
        return float(re.search(r"takes ([\d.]+) GiB", told)[1])

    monkeypatch.setattr(bench, "available_memory", lambda: Available(1 << 20, "a test gives"))
    plain = taken("--kv", "f16")
    logits = 4 * 512 * 262144 / 2**30
    assert logits <= taken("--kv", "f16", "--logits", "last,all") - plain < 1.5 * logits
    deep = ("--depth", 100000)
    assert taken(*deep, "--kv", "f16", "--kv", "f32") == taken(*deep, "--kv", "f32") > taken(*deep, "--kv", "f16")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--synthetic", "gemma9"), "there are those of gemma4-12b"),
        (("--synthetic", "gemma4-e2b:36"), "gemma4-e2b has 1 to 35 layers, not '36'"),
        (("--synthetic", "gemma4-e2b:x"), "not 'x'"),
        ((E2B, "--synthetic", "gemma4-e2b"), "not both"),
        ((), "give a MODEL"),
    ],
)
def test_mistakes_in_what_is_measured(given, told):
    assert told in called(*given, code=2)


# --- pictures ---------------------------------------------------------------------------------------


def test_a_chart_shows_every_point_with_its_spread():
    points = [Point(0, 120.0, 110.0, 123.0), Point(4096, 60.0, 50.0, 61.0)]
    panels = [Panel("decode", "tokens in the cache", {"ours": points, "a & b": points[:1]})] * 3
    root = ElementTree.fromstring(figure(panels))
    told = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert told.count("ours, 4,096: 60.0 tok/s (50.0 to 61.0)") == 3
    assert told.count("a & b, 0: 120.0 tok/s (110.0 to 123.0)") == 3
    heights = {float(c.get("cy")) for c in root.iter("{http://www.w3.org/2000/svg}circle") if c.find("*") is not None}
    assert len(heights) == 2  # a faster one is higher
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"0", "50", "100", "150", "4,096", "ours", "a & b"} <= set(texts)
    assert texts.count("ours") == 1
