"""The memory plan: what it says beforehand is what engines then take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from briolette.backends import reference
from briolette.backends.base import WEIGHTS, Options, Source, Weights
from briolette.backends.cpu import engine as cpu
from briolette.backends.cpu import jit, programs
from briolette.compiler.errors import BrioletteError
from briolette.compiler.ir import Module
from briolette.compiler.pipeline import front
from briolette.engine.available import available_memory, parsed_size
from briolette.engine.bench.sizes import sizes
from briolette.engine.bench.synthetic import synthetic
from briolette.engine.cli import app
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.engine.memory import Planner, plan_memory
from briolette.engine.source import architecture, source_of

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted((ROOT / "tests" / "oracle" / "models").glob("*.gguf"))
E2B = ROOT / "tests" / "oracle" / "models" / "gemma4_e2b.gguf"
CLOSE = 0.02


def opened(path: Path) -> tuple[GgufFile, Module]:
    file = open_gguf(path)
    return file, front(architecture(None, file.header), file.header)


def called(*args: object, code: int = 0) -> str:
    """What `briolette plan` prints; on stderr where it is a mistake."""
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", *map(str, args)], prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stderr if code == 2 else found.stdout


# --- what engines take ------------------------------------------------------------------------------


class NoCode:
    """Stands for machine code that is not made: what is allocated does not depend on it."""

    def __init__(self, code, target):
        pass

    def address(self, name: str) -> int:
        return 0


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_the_cpu_engine_allocates_what_was_planned(path, monkeypatch):
    file, module = opened(path)
    source = Source(lambda: module)
    for kv, context, chunk, threads in (("f32", 64, 16, 1), ("f16", 8, 8, 3), ("bf16", 512, 100, 2)):
        options = Options(context=context, cache=kv, threads=threads, chunk=chunk)
        engine = cpu.CpuEngine(source, Weights(file.tensor_bytes), options)
        planned = cpu.memory(source, kv)(options)
        with monkeypatch.context() as patch:
            patch.setattr(programs, "Library", NoCode)
            patch.setattr(programs, "kept", lambda name, make: b"")
            engine.group("generate")
        assert engine.allocated == planned.allocated
        assert sum(planned.mapped.values()) == sum({a.ctypes.data: a.nbytes for a in engine.kept}.values())
        engine.close()


LARGE, LONG = "gemma4-26b-a4b:6", 131072  # a fifth of it: a global layer, whose V is what K is made of, and five local


def test_presets_keep_a_long_context_in_a_quarter(monkeypatch):
    """Planned, and allocated. Of the global layer's 256 pairs of dimensions 64 turn, which the header does not say."""
    source = source_of(None, sizes(LARGE).header)

    def planned(kv: str) -> int:
        return cpu.memory(source, kv)(Options(context=LONG, cache=kv)).allocated["kv"]

    balanced, compact = (f"{preset};turning=64" for preset in ("balanced", "compact"))
    assert planned("f16") > 4 * planned(balanced)
    assert planned("f16") > 4.5 * planned(compact)

    given = Options(context=LONG, cache=balanced, weights="mapped")
    engine = cpu.CpuEngine(source, Weights(synthetic(sizes(LARGE)).tensor_bytes), given)
    monkeypatch.setattr(programs, "Library", NoCode)
    monkeypatch.setattr(programs, "kept", lambda name, make: make() if name.endswith(".json") else b"")
    engine.group("generate")
    planes = {at: plane.memory.nbytes for at, plane in engine.planes.items()}
    once = sum(size for (slot, plane), size in planes.items() if slot == 5 and not plane.startswith("near"))
    assert once == LONG * 2 * ((512 * 5 + 128 * 6) // 8 + 2 * (4 + 1))  # codes, and a scale for 128 values
    assert sum(planes.values()) == engine.allocated["kv"] == planned(balanced)
    engine.close()


def test_steps_take_no_more():
    """After a prefill over the whole context, a decode step and logits of every token."""
    file, module = opened(E2B)
    options = Options(context=33, cache="f16", threads=2, chunk=16)
    engine = cpu.compile(module, Weights(file.tensor_bytes), options)
    measure = cpu.memory(module, "f16")
    logits = engine.step(range(32), 0)
    engine.step([1], 32)
    assert engine.allocated == measure(options).allocated
    assert memory_under(logits).nbytes == measure(options).logits
    engine.step(range(33), 0, "all")
    assert engine.allocated == measure(options, ("generate", "evaluate")).allocated
    engine.close()


def test_several_sequences_take_what_was_planned():
    """Planes of all sequences, and the programs that run few and many of their tokens together."""
    file, module = opened(E2B)
    options = Options(context=33, cache="f16", threads=2, chunk=16, sequences=3)
    one, planned = (cpu.memory(module, "f16")(replace(options, sequences=n)) for n in (1, 3))
    assert planned.allocated["kv"] == 3 * one.allocated["kv"]
    engine = cpu.compile(module, Weights(file.tensor_bytes), options)
    engine.step(range(32), 0, sequence=2)
    engine.batch([1, 2, 3], [0, 0, 32], [0, 1, 2])
    engine.batch([1] * 6, [1, 2, 3, 4, 5, 6], [0] * 6)
    assert engine.allocated == planned.allocated
    engine.close()
    plain = reference.compile(module, Weights(file.tensor_bytes), options)
    plain.batch([1] * 99, [*range(33)] * 3, [0] * 33 + [1] * 33 + [2] * 33)
    assert plain.allocated == reference.memory(module, "f16")(options).allocated


def memory_under(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory."""
    while isinstance(array.base, np.ndarray) or hasattr(array.base, "base"):
        array = array.base
    return array


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_the_reference_engine_keeps_what_was_planned(path):
    file, module = opened(path)
    for kv, context, chunk in (("f32", 20, 8), ("f16", 9, 9), ("bf16", 7, 1)):
        options = Options(context=context, cache=kv, chunk=chunk)
        engine = reference.compile(module, Weights(file.tensor_bytes), options)
        engine.step(range(context), 0)
        engine.step([1], context - 1)
        assert engine.allocated == reference.memory(module, kv)(options).allocated


@pytest.mark.parametrize(
    ("name", "context", "chunk"),
    [("gemma2_caps", 1024, 256), ("gemma4_e2b", 768, 256), ("gemma4_moe", 500, 500), ("qwen3_untied", 1024, 512)],
)
def test_what_the_reference_engine_takes_within_a_step(name, context, chunk):
    file, module = opened(E2B.with_name(f"{name}.gguf"))
    options = Options(context=context, cache="f16", chunk=chunk)
    engine = reference.compile(module, Weights(file.tensor_bytes), options)
    engine.step([1], 0)  # decodes the weights, compiles the program
    tokens = [i % engine.token_ids for i in range(context)]
    tracemalloc.start()
    try:
        engine.step(tokens, 0)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    planned = reference.memory(module, "f16")(options)
    kept = sum(plane.bytes for plane in planned.planes)
    assert kept + planned.passing == pytest.approx(most, rel=CLOSE)


def test_decoding_takes_a_tensor_twice_for_a_moment():
    stored = {"a": 5, "b": 1}
    assert reference._decoding(stored, {"a": 100, "b": 10}) == (5 + 2 * 100) - 116
    assert reference._decoding(stored, {"b": 10, "a": 100}) == 100


# What is resident of a process whose context is full: all of it, the model file's mapping, and engine memory.
CHILD = """
import json, re, sys
import numpy as np
import briolette
from briolette.backends.cpu import engine as cpu, pack

compiled = []  # what is compiled takes memory too, and is there the next time
compile_object = cpu.compile_object
cpu.compile_object = pack.compile_object = lambda *args: compiled.append(1) or compile_object(*args)

path, context = sys.argv[1], int(sys.argv[2])
model = briolette.load(path, context=context, threads=2, weights=sys.argv[3])
model.tokenize("Hello")
ids = [2 + 509 * i % 200000 for i in range(context)]
model.prefill(ids[:-1])
model._append(ids)

def resident(array):
    first, last = array.ctypes.data // 4096, (array.ctypes.data + array.nbytes - 1) // 4096
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        pages.seek(8 * first)
        entries = np.frombuffer(pages.read(8 * (last + 1 - first)), np.uint64)
    return 4096 * int(np.sum(entries >> np.uint64(63)))

file, here = 0, ""
for line in open("/proc/self/smaps"):
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
        here = line.split(maxsplit=5)[-1].strip()
    elif line.startswith("Rss:") and here == path:
        file += 1024 * int(line.split()[1])
arrays = [p.memory for p in model.engine.planes.values()]
arrays += model.engine.packed.arrays.values()
arrays += [array for g in model.engine.groups.values() for array in (g.arena, g.scratch)]
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
found = {"peak": peak, "file": file, "engine": sum(map(resident, arrays)), "compiled": len(compiled)}
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="reads what Linux tells of a process")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_process_takes_what_was_planned(gemma3_path, weights):
    """With a full context, all that is planned exactly is resident; the rest is an estimate."""

    def child(context: int) -> dict[str, int]:
        command = [sys.executable, "-c", CHILD, str(gemma3_path.resolve()), str(context), weights]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    measured = next(found for found in (child(512) for _ in range(3)) if not found["compiled"])
    file, module = opened(gemma3_path)
    planned = plan_memory(file, module, Options(context=512, cache="f16", threads=2, chunk=256, weights=weights))
    kept = planned.kv_bytes + planned.arena + planned.scratch + planned.packed
    if weights == "mapped":  # of tables that are only looked up in, the system may keep more pages than are read
        assert measured["file"] == pytest.approx(planned.mapped, rel=CLOSE)
    assert measured["engine"] == pytest.approx(kept, rel=CLOSE)
    # What Python, numpy and LLVM take is an estimate, and so is what compiling adds.
    beside = planned.peak - planned.compiling - planned.mapped
    assert 0.75 * beside <= measured["peak"] - measured["file"] <= 1.25 * (beside + planned.compiling)


# --- the plan ---------------------------------------------------------------------------------------


def test_layers_that_share_a_cache_store_nothing_and_sliding_ones_a_ring():
    file, module = opened(E2B)
    plan = plan_memory(file, module, Options(context=256, cache="f16", chunk=16))
    local, whole = plan.kv
    assert (local.kind, whole.kind) == ("local", "global")
    assert (local.window, whole.window) == (7, None)
    assert (local.positions, whole.positions) == (7 + 16, 256)
    assert len(local.stored) < len(local.layers)
    assert set(local.stored) <= set(local.layers)
    assert local.bytes == local.positions * local.token_bytes
    assert plan.kv_bytes == local.bytes + whole.bytes


def test_a_table_that_tokens_are_looked_up_in_stays_in_the_file():
    file, module = opened(E2B)
    plan = plan_memory(file, module, Options(context=4, cache="f16", chunk=4))
    table = file.tensor_bytes("per_layer_token_embd.weight").nbytes
    assert plan.tables == table
    assert 0 < plan.looked_up <= table
    read = sum(file.tensor_bytes(t).nbytes for t in file.header.tensors)
    assert plan.weights <= read - table  # what nothing reads is not counted
    assert plan.weights >= file.tensor_bytes("token_embd.weight").nbytes  # the head reads all of it
    assert plan.metadata == file.size - read
    assert plan.logits == 2 * 4 * 80  # of two steps, f32, for each token there is


def test_a_plan_needs_only_the_header():
    file, module = opened(E2B)
    options = Options(context=64, cache="bf16", chunk=8)
    assert plan_memory(file.header, module, options) == replace(plan_memory(file, module, options), metadata=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_largest_context_is_exact(backend):
    """Held against trying every context, below the chunk and above, inside the window and outside."""
    file, module = opened(E2B)
    planner = Planner(file, module, "f32", backend)
    asked, limit = Options(context=64, cache="f32", chunk=12), 40

    def peak(context: int) -> int:
        return planner.plan(replace(asked, context=context, chunk=min(12, context))).peak

    peaks = [peak(context) for context in range(1, limit + 1)]
    for context in (1, 2, 5, 11, 12, 13, 25, limit):
        for memory in (peaks[context - 1], peaks[context - 1] - 1):
            best = max((at for at, taken in enumerate(peaks, 1) if taken <= memory), default=0)
            assert planner.largest(asked, memory, limit) == best
    assert len(set(peaks)) == limit


# --- the machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8 * 10**9),
        ("7.5GiB", 15 << 29),
        ("500 MB", 500 * 10**6),
        ("2g", 2 << 30),
        ("12", 12),
        ("12B", 12),
        ("1TiB", 1 << 40),
        ("0.5kib", 512),
    ],
)
def test_amounts_of_memory(text, count):
    assert parsed_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "8XB", "-1GB", "8 G B", "8GBB", "1e9", "8iB", "nan", "9" * 400])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(BrioletteError, match="no amount of memory"):
        parsed_size(text)


def machine(root: Path, groups: str, **files: str) -> Path:
    """A root folder of a machine with 1 GiB available, and files of control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder: str, limit: str, used: int, cached: int) -> dict[str, str]:
    """The files of a control group, version 2."""
    at = f"{folder}__" if folder else ""
    return {
        f"{at}memory_DOT_max": f"{limit}\n",
        f"{at}memory_DOT_current": f"{used}\n",
        f"{at}memory_DOT_stat": f"anon 5\ninactive_file {cached}\nactive_file 1000\n",
    }


def test_memory_without_a_limit(tmp_path):
    found = available_memory(machine(tmp_path, "0::/user\n", **group("user", "max", 7, 0)))
    assert (found.bytes, found.source) == (1 << 30, "this machine has available now")


def test_the_tightest_limit_counts_and_pages_of_files_do_not(tmp_path):
    files = group("a", "600000", 400000, 100000) | group("a__b", "max", 300000, 0)
    found = available_memory(machine(tmp_path, "0::/a/b\n", **files))
    assert found.bytes == 600000 - (400000 - 101000)
    assert "limit" in found.source


def test_a_container_sees_its_limit_at_the_root(tmp_path):
    found = available_memory(machine(tmp_path, "0::/host/name\n", **group("", "5000", 9000, 0)))
    assert found.bytes == 0  # above its limit: nothing is left


def test_limits_of_version_1(tmp_path):
    files = {
        "memory__g__memory_DOT_limit_in_bytes": "800000\n",
        "memory__g__memory_DOT_usage_in_bytes": "500000\n",
        "memory__g__memory_DOT_stat": "total_inactive_file 200000\ntotal_active_file 50000\n",
    }
    found = available_memory(machine(tmp_path, "3:cpu:/x\n4:memory:/g\n", **files))
    assert found.bytes == 800000 - (500000 - 250000)


def test_this_machine():
    assert 0 < available_memory().bytes < 1 << 60


# --- the command ------------------------------------------------------------------------------------


def test_plan_says_what_fits_and_compiles_nothing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("machine code is made or loaded")

    monkeypatch.setattr(jit.Library, "__init__", refuse)
    monkeypatch.setattr(cpu, "compile_object", refuse)
    monkeypatch.setattr(reference, "array_of", refuse)
    for backend in ("cpu", "reference"):
        text = called(E2B, "--backend", backend, "--memory", "8GB")
        assert "It fits into the 7.45 GiB that --memory gives" in text
        assert "KV local" in text
        assert "all that the model was made for" in text


def test_exit_codes_and_reasons():
    assert "No context fits: one token takes" in called(E2B, "--memory", "1MB", code=1)
    assert "No context fits: the weights alone" in called(E2B, "--memory", "1KB", code=1)
    peak = json.loads(called(E2B, "--json", "--ctx", 100))["peak"]
    assert "The largest context that fits is 100 tokens." in called(E2B, "--ctx", 100, "--memory", peak)
    text = called(E2B, "--ctx", 101, "--memory", peak, code=1)
    assert "are missing" in text
    assert "still run, reading parts of the file" in text
    assert "largest context that fits is 100 tokens" in text


def test_json_holds_what_its_page_says():
    found = json.loads(called(E2B, "--json", "--context", 64, "--kv", "bf16", "--chunk", 8, "--threads", 3))
    page = (ROOT / "docs" / "cli.md").read_text().split("\n## plan\n")[1].split("\n## ")[0]
    assert [key for key in (*found, *found["kinds"][0]) if f"`{key}`" not in page] == []
    assert (found["context"], found["kv_type"], found["chunk"], found["threads"]) == (64, "bf16", 8, 3)
    assert found["kv"] == sum(kind["bytes"] for kind in found["kinds"])
    parts = ("weights", "looked_up", "metadata", "decoded", "kv", "arena", "scratch", "addresses", "logits")
    assert found["peak"] == sum(found[part] for part in (*parts, "process", "compiling"))
    assert found["fits"] is True
    assert found["largest_context"] == found["context_length"] == 512


def test_inspect_tells_the_same():
    options = ("--context", "64", "--chunk", "8", "--json")
    plan = json.loads(called(E2B, *options))
    inspected = CliRunner().invoke(app, ["inspect", str(E2B), *options])
    memory = json.loads(inspected.stdout)["memory"]
    assert memory == {key: plan[key] for key in memory}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--memory", "much"], "no amount of memory"),
        (["--backend", "cuda9"], "there is no backend"),
        (["--kv", "q9"], "f32, f16, bf16"),
        (["--ctx", "0"], "--ctx"),
        (["--spec", "llama"], "this spec is for llama"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_mistakes(args, words):
    assert words in " ".join(called(E2B, *args, code=2).split())


def test_files_that_cannot_be_planned(tmp_path, gemma4_vocab_path):
    assert "no such file" in called(tmp_path / "none.gguf", code=2)
    assert "token_embd" in called(gemma4_vocab_path, code=2)
    other = tmp_path / "other.gguf"
    other.write_bytes(E2B.read_bytes().replace(b"gemma4", b"gemmaX"))
    assert "does not come with briolette" in called(other, code=2)


def test_help_shows_examples():
    assert "briolette plan model.gguf --ctx" in " ".join(called("--help").split())


def test_a_context_beyond_what_the_model_was_made_for_is_said():
    text = called(E2B, "--ctx", 1000)
    assert "The model was made for 512 tokens, which would fit; of 1000, the later ones are beyond" in text
    assert "largest context" not in text


def test_numbers_are_singular_where_they_are_one():
    text = called(E2B, "--ctx", 1, "--chunk", 1)
    assert re.search(r"\b1 (?:tokens|positions|layers)\b", text) is None
    assert "full at 1 token\n" in text


def test_the_type_of_the_cache_is_the_one_that_is_kept():
    assert "f32 with the numbers of f16" in called(E2B, "--kv", "f16", "--backend", "reference")
    assert json.loads(called(E2B, "--kv", "f16", "--backend", "reference", "--json"))["kv_type"] == "f32"
    assert json.loads(called(E2B, "--kv", "f16", "--json"))["kv_type"] == "f16"
