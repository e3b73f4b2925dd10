"""What is kept on disk between runs: what it is keyed by, and what may happen to its folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir
from programs import HOST, PLAIN, Program, T

from briolette.backends.cpu import codegen, store
from briolette.backends.cpu.build import I8, PTR, VOID, Build
from briolette.backends.cpu.jit import Library
from briolette.backends.cpu.runtime_ir import emit_barrier
from briolette.compiler.ops import node


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("BRIOLETTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


def run(columns: int = 8, scale: float = 1.0, **how: object) -> np.ndarray:
    """Compiles (or finds) the runtime and two small programs, and runs one."""
    p = Program(seed=1)
    heads = node("reshape", p.input("x", 4, columns), shape=(T, 1, columns))
    cache = str(how.get("cache", "f32"))
    k, v = (node("cache_write", heads, node("position", rows=T), slot=0, plane=plane, dtype=cache) for plane in "kv")
    y = node("attend", heads, k, v, node("position", rows=T), scale=scale)
    engine = p.engine(node("reshape", y, shape=(T, columns)), **how)
    found = engine.step([0], 0)
    engine.close()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def forbid_compiling(monkeypatch) -> None:
    def fail(*_: object) -> bytes:
        raise AssertionError("compiled what the cache should have had")

    for what in ("engine.compile_object", "codegen.compile_text"):
        monkeypatch.setattr(f"briolette.backends.cpu.{what}", fail)


def test_second_run_compiles_nothing(folder, monkeypatch):
    first = run()
    assert all(name.endswith(".o") for name in files(folder))
    forbid_compiling(monkeypatch)
    assert np.array_equal(run(), first)
    assert np.array_equal(run(threads=3), first)
    assert np.array_equal(run(context=64), first)  # neither is part of the code


def test_what_the_key_depends_on(folder, monkeypatch):
    seen = 0

    def one_more(**how: object) -> None:
        nonlocal seen
        run(**how)
        assert len(files(folder)) > seen, how
        seen = len(files(folder))

    one_more()
    one_more(columns=9)
    one_more(scale=0.5)
    one_more(cache="f16")
    one_more(cache="bf16")
    one_more(chunk=5)  # buffers lie elsewhere
    one_more(target=replace(HOST, lanes=4))
    if not HOST.arm:
        one_more(target=PLAIN)
    monkeypatch.setattr(store, "code_version", lambda: "another")
    one_more()


def test_a_kernel_is_compiled_once_for_all_programs(folder, monkeypatch):
    """Other programs of the same shapes, and those of another version of the compiler that emits the same."""
    run()
    texts, compile_text = [], codegen.compile_text

    def compiling(text: str, *how: object) -> bytes:
        texts.append(text)
        return compile_text(text, *how)

    monkeypatch.setattr(codegen, "compile_text", compiling)
    monkeypatch.setattr(store, "code_version", lambda: "another")
    run()
    assert not texts
    run(scale=0.5)
    made = {name.split(".")[0] for text in texts for name in re.findall(r'define +void @"([^"]+)"', text)}
    assert made == {"attend_one", "merge", "decode", "prefill"}  # not what writes the cache, nor the barrier


def test_what_a_function_refers_to_goes_with_it():
    module = ir.Module()
    module.triple = HOST.triple
    before = emit_barrier(module, HOST)
    first = codegen.text_of(before)
    for number in range(3):  # more branches with weights, before the same function
        other = ir.Module()
        other.triple = HOST.triple
        for value in range(number):
            other.add_metadata([ir.Constant(ir.IntType(32), value)])
        assert codegen.text_of(emit_barrier(other, HOST)) == first
    function = ir.Function(module, ir.FunctionType(VOID, [PTR]), "calls")
    b = Build(ir.IRBuilder(function.append_basic_block("entry")), HOST)
    b.ir.call(before, [function.args[0]])
    b.load(b.table(I8, [1, -2, 3]), I8)
    b.ir.ret_void()
    text = codegen.text_of(function)
    assert 'declare void @"barrier"(ptr' in text
    assert "private constant [3 x i8]" in text
    objects = [codegen.compiled(codegen.text_of(f), HOST, level) for f, level in ((before, 2), (function, 0))]
    assert Library(objects, HOST).address("calls")


def test_the_code_version_covers_the_compiler():
    """The sources of everything between an architecture's tree and machine code."""
    store.code_version.cache_clear()
    read, original = [], Path.read_bytes

    def spy(path: Path) -> bytes:
        read.append(path.name)
        return original(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", spy)
        version = store.code_version()
    assert {"elaborate.py", "fuse.py", "plan.py", "ops.py", "views.py"} <= set(read)
    assert {"formats.py", "base.py", "emit.py", "linear.py", "runtime_ir.py", "record.py"} <= set(read)
    assert store.code_version() == version


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "no object at all"])
def test_damaged_objects_are_compiled_again(folder, damage):
    expected = run()
    good = files(folder)
    for name, content in good.items():
        broken = {
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "flipped": content[:100] + bytes([content[100] ^ 1]) + content[101:],
            "no object at all": b"not found" * 20,
        }[damage]
        (folder / name).write_bytes(broken)
    assert np.array_equal(run(), expected)
    assert files(folder).keys() == good.keys()
    assert all(store.hashlib.sha256(c[32:]).digest() == c[:32] for c in files(folder).values())


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRIOLETTE_CACHE", str(tmp_path / "file" / "cache"))
    assert run().shape == (1, 8)


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    expected = run()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.tempfile, "mkstemp", full)
    for path in folder.iterdir():
        path.unlink()
    assert np.array_equal(run(), expected)
    assert not files(folder)


def test_a_write_that_fails_leaves_nothing(folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full)
    assert run().shape == (1, 8)
    assert not files(folder)


def test_an_interruption_just_after_the_write(folder, monkeypatch):
    """The file is complete; the interruption, not a complaint about the file, reaches the caller."""
    replace_file = os.replace

    def interrupted(*names: str) -> None:
        replace_file(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.kept("key.o", lambda: b"made")
    assert set(files(folder)) == {"key.o"}
    assert store.kept("key.o", lambda: b"made again") == b"made"


def test_no_home(monkeypatch):
    monkeypatch.delenv("BRIOLETTE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(store.Path, "home", nobody)
    assert store.kept("key.o", lambda: b"made") == b"made"


def test_the_folder_is_bounded(folder, monkeypatch):
    """What was not used for longest goes first; what killed writers left goes after an hour."""
    for i in range(4):
        store.kept(f"key{i}.o", lambda: bytes(1000))
        os.utime(folder / f"key{i}.o", (i, i))
    (folder / (store.WRITING + "dead")).write_bytes(b"half")
    os.utime(folder / (store.WRITING + "dead"), (0, 0))
    (folder / (store.WRITING + "live")).write_bytes(b"half")
    assert store.kept("key0.o", lambda: b"") == bytes(1000)  # used: now the last to go
    monkeypatch.setattr(store, "CACHE_LIMIT", 3100)
    monkeypatch.setattr(store, "PRUNE_EVERY", 1000)
    store.kept("key4.o", lambda: bytes(1000))
    assert set(files(folder)) == {"key0.o", "key3.o", "key4.o", store.WRITING + "live"}


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_store import run
sys.stdin.read()  # all begin at once
print(run(columns=48).tobytes().hex())
"""


def test_processes_that_compile_at_once(folder):
    script = SCRIPT.format(folder=os.path.dirname(__file__))
    start = [sys.executable, "-c", script]
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(start, text=True, **ends) for _ in range(4)]
    time.sleep(0.5)
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    found = {process.stdout.read() for process in processes if process.stdout}
    assert [process.wait() for process in processes] == [0] * 4
    for process in processes:
        process.stdout.close()
        process.stderr.close()
    assert len(found) == 1
    assert found != {""}
    assert not [name for name in files(folder) if name.startswith(store.WRITING)]
    assert all(store.hashlib.sha256(c[32:]).digest() == c[:32] for c in files(folder).values())
