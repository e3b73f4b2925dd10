"""A second start: what it takes from the disk, and that it never takes what was made of something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import briolette
from briolette.backends.base import Options
from briolette.backends.cpu import store
from briolette.backends.cpu.programs import Programs
from briolette.backends.cpu.record import Record
from briolette.backends.cpu.target import Target
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header, TensorInfo
from briolette.engine.gguf import NumberArray, open_gguf
from briolette.engine.kv import settled
from briolette.engine.source import ModelSource, source_of
from briolette.spec import files, syntax

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
E2B = MODELS / "gemma4_e2b.gguf"
HOST = Target.host()
OPTIONS = Options(context=64, chunk=16, cache="f32")
HEADER = open_gguf(E2B).header


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("BRIOLETTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def record(header: Header = HEADER, spec: object = None, options: Options = OPTIONS, target: Target = HOST) -> Record:
    """The record of a fresh process, as it were."""
    return Programs(source_of(spec, header), target).record("generate", options)


# --- a second start ------------------------------------------------------------------------------------


def test_a_second_start_makes_no_program(folder, monkeypatch):
    tokens = np.load(E2B.with_suffix(".npz"))["tokens"].tolist()
    first = briolette.load(E2B, context=64, chunk=16)
    wanted = first.prefill(tokens)
    first.close()
    monkeypatch.setattr(ModelSource, "_unrolled", lambda self: pytest.fail("the module was made again"))
    again = briolette.load(E2B, context=48, chunk=16, threads=2)  # neither is part of programs
    assert np.array_equal(again.prefill(tokens), wanted)
    assert again.vocabulary == len(wanted)
    again.close()


def test_a_preset_asks_for_no_module_again(folder, monkeypatch):
    """Whether K and V could be kept once is known from an earlier start."""
    assert settled("balanced", source_of(None, HEADER), open_gguf(E2B).tensor_bytes) == "balanced"
    monkeypatch.setattr(ModelSource, "_unrolled", lambda self: pytest.fail("the module was made again"))
    assert settled("balanced", source_of(None, HEADER), open_gguf(E2B).tensor_bytes) == "balanced"


def test_a_second_start_imports_neither_parser_nor_compiler(folder):
    script = (
        f"import sys, briolette; m = briolette.load({str(E2B)!r}, context=64)\n"
        "next(m.generate([2, 5])); m.close()\n"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] == 'lark' or n.startswith('briolette.')))"
    )
    loaded = [subprocess.run([sys.executable, "-c", script], text=True, capture_output=True) for _ in range(2)]
    assert [run.stderr for run in loaded] == ["", ""]
    cold, warm = (set(run.stdout.split()) for run in loaded)
    heavy = {"lark", "briolette.spec.syntax", "briolette.compiler.pipeline", "briolette.backends.cpu.emit"}
    assert heavy <= cold
    assert not heavy & warm
    assert not any("kernels" in name for name in warm)


def test_a_module_can_still_be_had(folder):
    for _ in range(2):
        model = briolette.load(E2B, context=64)
        next(model.generate([2, 5]))
        assert model.module.name == model.tree.name == "gemma4"
        found = model.values([2, 5], ["main.logits"])["main.logits"]
        assert found.shape == (2, model.vocabulary)
        model.close()


def test_a_record_says_all_that_it_said(folder):
    made = record()
    assert Record.from_bytes(made.to_bytes()) == made
    assert record() == made
    assert {f.name for f in fields(Record)} == set(json.loads(made.to_bytes()))


# --- nothing stale ---------------------------------------------------------------------------------------


UP, EPSILON = "blk.0.ffn_up.weight", "gemma4.attention.layer_norm_rms_epsilon"
SLIDING = "gemma4.attention.sliding_window_pattern"
CHANGED = {
    "a format": {"tensors": HEADER.tensors | {UP: replace(HEADER.tensors[UP], format="f16")}},
    "a number": {"metadata": HEADER.metadata | {EPSILON: 2 * HEADER.metadata[EPSILON]}},
    "a list": {"metadata": HEADER.metadata | {SLIDING: HEADER.metadata[SLIDING][::-1]}},
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_a_file_says_is_part_of_the_key(what, folder):
    known = record()  # as if it had come first
    header = replace(HEADER, **CHANGED[what])
    assert source_of(None, header).key != source_of(None, HEADER).key
    if what == "a list":  # this one is held against the layers' tensors
        with pytest.raises(BrioletteError):
            record(header)
    else:
        assert record(header).code != known.code


def test_a_long_list_counts_to_its_end():
    ours, theirs = np.arange(5000), np.arange(5000)
    theirs[-1] += 1
    one, other, listed = (
        source_of(None, replace(HEADER, metadata=HEADER.metadata | {"gemma4.more": value})).key
        for value in (NumberArray(ours), NumberArray(theirs), ours.tolist())
    )
    assert one == listed != other


def test_a_tensor_more_and_a_shape():
    more = HEADER.tensors | {"more": TensorInfo("more", (1, 2), "f32")}
    other = HEADER.tensors | {"more": TensorInfo("more", (2, 1), "f32")}
    keys = {source_of(None, replace(HEADER, tensors=tensors)).key for tensors in (HEADER.tensors, more, other)}
    assert len(keys) == 3


def test_what_no_architecture_reads_is_not():
    other = replace(HEADER, metadata=HEADER.metadata | {"general.name": "another"}, source="elsewhere.gguf")
    assert source_of(None, other).key == source_of(None, HEADER).key


def test_the_text_is_part_of_the_key(tmp_path, folder):
    path = tmp_path / "mine.arch"
    text = syntax.shipped()["gemma4"].read_text()
    path.write_text(text)
    assert record(spec=path) == record()  # wherever it lies
    assert len(records(folder)) == 1
    assert text.count("scale=1,") == 1
    path.write_text(text.replace("scale=1,", "scale=0.5,"))
    assert record(spec=path).code != record().code
    path.write_text(text)
    assert record(spec=path) == record()


def test_the_text_that_was_hashed_is_the_one_that_is_parsed(tmp_path):
    path = tmp_path / "mine.arch"
    path.write_text(syntax.shipped()["gemma4"].read_text())
    source = source_of(path, HEADER)
    path.write_text("arch other\n")
    assert source.tree.name == "gemma4"


def test_a_tree_has_no_key(folder):
    source = source_of(syntax.find("gemma4"), HEADER)
    assert source.key == ""
    Programs(source, HOST).record("generate", OPTIONS)
    assert not folder.exists() or not records(folder)


@pytest.mark.parametrize(
    "change", [{"cache": "f16"}, {"chunk": 8}, {"weights": "packed"}, {"weights": "mixed"}, {"prefill": "fast"}]
)
def test_options_that_programs_depend_on_are_part_of_the_name(change, folder):
    record()
    record(options=replace(OPTIONS, **change))
    assert len(records(folder)) == 2
    record(options=replace(OPTIONS, **change, threads=3, context=32, sequences=2))
    assert len(records(folder)) == 2


def test_all_options_are_known_here():
    """A new option must be looked at: is it part of a record's name?"""
    assert {f.name for f in fields(Options)} == {
        *("cache", "chunk", "weights", "prefill"),  # are part of it
        *("context", "threads", "sequences"),  # are not
    }


def test_machine_and_version_are_part_of_the_name(folder, monkeypatch):
    record()
    record(target=replace(HOST, lanes=4))
    assert len(records(folder)) == 2
    monkeypatch.setattr(store, "code_version", lambda: "another")
    record()
    assert len(records(folder)) == 3
    monkeypatch.setattr(files, "language", lambda: "another")
    record()
    assert len(records(folder)) == 4


# --- what may happen to files ------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "another's"])
def test_damaged_records_are_made_again(damage, folder):
    made = record()
    (path,) = records(folder)
    good = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": good[: len(good) // 2],
            "flipped": good[:60] + bytes([good[60] ^ 1]) + good[61:],
            "another's": b'{"code": "none"}',
        }[damage]
    )
    assert record() == made
    assert path.read_bytes() == good


def test_code_that_is_gone_is_compiled_again(folder):
    model = briolette.load(E2B, context=64)
    wanted = model.prefill([2, 5])
    model.close()
    for path in folder.glob("*.o"):
        path.unlink()
    model = briolette.load(E2B, context=64)
    assert np.array_equal(model.prefill([2, 5]), wanted)
    model.close()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRIOLETTE_CACHE", str(tmp_path / "file" / "cache"))
    assert record() == record()


SCRIPT = f"""
import sys, briolette
sys.stdin.read()  # all begin at once
model = briolette.load({str(E2B)!r}, context=64)
print(model.prefill([2, 5, 9]).tobytes().hex())
"""


def test_processes_that_start_at_once(folder):
    start = [sys.executable, "-c", SCRIPT]
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(start, text=True, **ends) as one, subprocess.Popen(start, text=True, **ends) as other:
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        found = [process.communicate(timeout=300) for process in (one, other)]
    assert [errors for _, errors in found] == ["", ""]
    assert found[0] == found[1] != ("", "")
    assert len(records(folder)) == 1
    assert not [name for name in os.listdir(folder) if name.startswith(store.WRITING)]
