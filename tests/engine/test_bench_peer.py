"""`briolette bench --peer`: turns and ratios, with a stand-in for the other engine."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from briolette.engine.bench.peer import Beside
from briolette.engine.bench.run import run
from briolette.engine.bench.wanted import Wanted
from briolette.engine.commands.terminal import TELLING
from briolette.engine.gguf import open_gguf

sys.path.insert(0, str(Path(__file__).parent))
from test_bench import E2B, SIZES, called, little_memory  # noqa: F401  the last is a fixture

STAND_IN = '''#!{python}
"""Answers as llama_cpp_speed.py does, and takes a second for everything, or four with a cache of 4 bits."""
import json, sys
print(json.dumps({{"version": "9.9", "loaded": {loaded}}}), flush=True)
print("more than a pipe holds " * 10000, file=sys.stderr)
for line in sys.stdin:
    request = json.loads(line)
    known = not set(request["kv"]) - {{"f16", "f32", "q8_0", "q4_0"}}
    seconds = 4.0 if request["kv"][1] == "q4_0" else 1.0
    print(json.dumps({{"seconds": seconds}} if known else {{"failed": request["kv"]}}), flush=True)
    if "{gives_up}" in request:
        sys.exit("out of patience")
'''


def stand_in(folder: Path, loaded: bool = True, gives_up: str = "never") -> Path:
    """A peer's Python that runs something else than it is told."""
    found = folder / "python"
    found.write_text(STAND_IN.format(python=sys.executable, loaded=loaded, gives_up=gives_up))
    found.chmod(0o755)
    return found


def test_a_peer_takes_turns_and_its_ratio_is_told(tmp_path):
    peer = ("--peer", "llama.cpp", "--peer-python", stand_in(tmp_path))
    found = json.loads(called(E2B, *SIZES, "--threads", 1, "--depth", "0,8", *peer, "--json"))
    assert found["versions"]["llama.cpp"] == "9.9"
    assert [(r["engine"], r["test"], r["depth"]) for r in found["results"]] == [
        (engine, test, depth)
        for depth in (0, 8)
        for test in ("prefill", "decode")
        for engine in ("briolette", "llama.cpp")
    ]
    for ours, theirs in zip(found["results"][::2], found["results"][1::2], strict=True):
        assert theirs["rate"] == theirs["tokens"]  # in a second
        assert theirs["kv"] == "f32"  # as ours
        assert ours["ratios"] == {"f32": pytest.approx(ours["rate"] / theirs["rate"], rel=0.01)}
        assert "ratios" not in theirs
        assert "read_share" not in theirs


def test_a_peers_caches_take_turns_with_each_of_ours(tmp_path):
    peer = ("--peer", "llama.cpp", "--peer-python", stand_in(tmp_path), "--peer-kv", "q8_0", "--peer-kv", "q8_0/q4_0")
    given = (
        E2B,
        "--prompt",
        0,
        "--generate",
        4,
        "--repetitions",
        2,
        "--threads",
        1,
        "--kv",
        "f16",
        "--kv",
        "bf16",
        *peer,
    )
    found = json.loads(called(*given, "--json"))["results"]
    theirs = [("llama.cpp", "q8_0", 4.0), ("llama.cpp", "q8_0/q4_0", 1.0)]
    assert [(r["engine"], r["kv"]) for r in found] == [
        each[:2] for kv in ("f16", "bf16") for each in [("briolette", kv), *theirs]
    ]
    assert [r["rate"] for r in found if r["engine"] == "llama.cpp"] == [rate for *_, rate in theirs] * 2
    for ours in found[::3]:
        assert ours["ratios"] == {kv: pytest.approx(ours["rate"] / rate, rel=0.01) for _, kv, rate in theirs}
    rows = called(*given).splitlines()
    assert sum(row.endswith(" x") and row.count(" x") == 2 for row in rows) == 2
    assert any("beside llama.cpp q8_0  beside llama.cpp q8_0/q4_0" in row for row in rows)
    assert "no cache of type q9_0" in called(*given, "--peer-kv", "q9_0", code=2)


def test_a_peer_is_given_the_first_file_of_a_split_model(tmp_path):
    script = stand_in(tmp_path)
    script.write_text(script.read_text().replace('"9.9"', "sys.argv[3]"))
    part = replace(open_gguf(E2B), path=Path("m-00002-of-00002.gguf"), shards=(E2B, Path("m-00002-of-00002.gguf")))
    wanted = Wanted.read(["4"], ["0"], ["0"], ["1"], ["exact"], ["last"], 1)
    options = {"weights": None, "chunk": 4, "spec": None}
    found = run(part, wanted, options, TELLING, beside=Beside("llama.cpp", script))
    assert found.peer == {"llama.cpp": str(E2B)}  # the stand-in's version is the model that it is given


def test_what_is_wrong_with_a_peer_is_told_in_a_sentence(tmp_path):
    def told(python: object, *model: object, peer: str = "llama.cpp") -> str:
        return called(*(model or (E2B,)), *SIZES, "--peer", peer, "--peer-python", python, code=2)

    assert f"there is no Python {tmp_path / 'none'}; `make peers`" in told(tmp_path / "none")
    assert "--peer takes llama.cpp, not 'ollama'" in told(sys.executable, peer="ollama")
    dying = stand_in(tmp_path, gives_up="fill")
    dying.write_text(dying.read_text().replace('sys.exit("out of patience")', "import os; os.abort()"))
    assert "llama.cpp gave up (Aborted)" in told(dying)
    without = tmp_path / "without"
    without.write_text(f"#!{sys.executable}\nraise SystemExit('No module named llama_cpp')\n")
    without.chmod(0o755)
    assert "does not have it" in told(without)
    assert "No module named llama_cpp" in told(without)
    assert "cannot load" in told(stand_in(tmp_path, loaded=False))
    assert "gave up (out of patience)" in told(stand_in(tmp_path, gives_up="decode"))
    assert "a model that is made up" in told(stand_in(tmp_path), "--synthetic", "gemma4-e2b:1")
