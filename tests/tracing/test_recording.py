"""Recording on every backend, and the file that a trace is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import MODELS, against, model, recorded, tokens

from briolette.compiler.errors import BrioletteError
from briolette.compiler.labels import labels
from briolette.engine.tracing.file import Recording, load, save
from briolette.engine.tracing.record import choose, record


@pytest.mark.parametrize("name", MODELS)
def test_backends_agree_on_every_value_with_a_cache_of_f16(name: str) -> None:
    """What cpu computed, with buffers for all values, is what the program means: step by step, and as a whole."""
    native, plain = recorded(name, "cpu", "f16"), recorded(name, "reference", "f16")
    assert list(native.values) == list(plain.values)
    found = against(name, native, ours=plain)
    assert found.findings == []
    assert max(row.local for row in found.rows) < 1e-6


@pytest.mark.parametrize("name", ["gemma4_e2b", "gemma4_moe", "llama_plain"])
def test_the_values_recorded_lead_to_the_models_logits(name: str) -> None:
    for backend in ("cpu", "reference"):
        found = recorded(name, backend)
        logits = np.load(MODELS[name].with_suffix(".npz"))["logits"]
        last = found.named()["main"]
        assert np.linalg.norm(last - logits) < 2e-5 * np.linalg.norm(logits)
        assert all(found.values[label].shape[0] == len(tokens(name)) for label in found.values)


def test_a_recording_in_several_steps_is_one_in_a_single_step() -> None:
    """A prompt longer than the chunk of a step: the cache carries over, values are joined."""
    known = model("gemma4_e2b", "cpu")
    long = (tokens("gemma4_e2b") * 3)[:70]
    found = known.values(long, ["blk.3.attention.a", "main"])
    wanted = model("gemma4_e2b", "reference").values(long, ["blk.3.attention.a", "main"])
    for label, value in found.items():
        assert value.shape == wanted[label].shape
        assert np.linalg.norm(value - wanted[label]) < 1e-3 * np.linalg.norm(wanted[label])
    for rows in (3, 50):  # within the last step, and from several
        ends = known.values(long, ["blk.3.attention.a", "main"], {"main": rows})
        assert np.array_equal(ends["main"], found["main"][-rows:])
        assert len(ends["blk.3.attention.a"]) == len(long)


def test_an_engine_goes_on_after_its_values_were_recorded() -> None:
    known, ids = model("gemma4_e2b", "cpu"), tokens("gemma4_e2b")
    before = known.logits(ids)
    known.values(ids[:3], ["main"])
    assert np.array_equal(known.logits(ids), before)


def test_every_label_may_be_recorded_views_and_other_names_too() -> None:
    known = model("gemma4_moe", "cpu")
    found = record(known, tokens("gemma4_moe"), ["blk.0.attention.c", "blk.0.attn_k", "blk.0.experts.e", "main*"])
    assert found.values["blk.0.experts.e"].dtype == np.int32
    assert np.array_equal(found.values["blk.0.attention.c"].reshape(26, -1), found.values["blk.0.attn_k"])
    assert not found.about["complete"]


def test_a_recording_tells_of_each_value_where_it_comes_from() -> None:
    told = recorded("gemma4_e2b").told("blk.0.attention.q")
    line = int(told["where"].removeprefix("gemma4.arch:"))
    assert "rope" in model("gemma4_e2b").tree.source.split("\n")[line - 1]
    assert (told["op"], told["shape"]) == ("rope", [26, 4, 8])
    assert set(choose(model("gemma4_e2b").module)) <= set(labels(model("gemma4_e2b").module))


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = recorded("gemma4_moe")
    save(tmp_path / "run.npz", found)
    again = load(tmp_path / "run.npz")
    assert list(again.values) == list(found.values)
    assert all(np.array_equal(again.values[label], value) for label, value in found.values.items())
    assert np.array_equal(again.tokens, found.tokens)
    assert again.about == {"format": "briolette-trace 1", **found.about}
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


def test_a_block_may_have_any_name(tmp_path: Path) -> None:
    values = {"file": np.ones((1, 2), np.float32), "allow_pickle": np.zeros((1, 2), np.float32)}
    save(tmp_path / "run.npz", Recording(np.array([1], np.int32), values))
    assert list(load(tmp_path / "run.npz").values) == list(values)


def test_a_file_that_was_there_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    save(path, recorded("llama_plain"))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save(path, replace(recorded("llama_plain"), about={"spec": object()}))
    with pytest.raises(ValueError, match="too large"):
        save(path, replace(recorded("llama_plain"), values={"a": _Unwritable()}))
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


class _Unwritable:
    """Fails in the middle of the writing."""

    def __array__(self, *args: object, **named: object) -> np.ndarray:
        raise ValueError("too large")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a zip", "is no trace"),
        (b"", "is no trace"),
        (b"PK\x03\x04 and then nothing", "is no trace"),
    ],
)
def test_other_files_are_no_traces(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BrioletteError, match=says):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"a": np.zeros(3)}, "is no trace"),
        ({"__tokens__": np.zeros((2, 2), np.int32)}, "a list of token ids"),
        ({"__tokens__": np.array([1.5])}, "a list of token ids"),
        ({"__tokens__": np.array([], np.int32)}, "a list of token ids"),
        ({"__tokens__": np.array([1 << 31]), "main": np.zeros((1, 2))}, "beyond 32 bits"),
        ({"__tokens__": np.array([-1]), "main": np.zeros((1, 2))}, "below 0"),
        ({"__tokens__": np.array([1])}, "has no values"),
        ({"__tokens__": np.array([1]), "__about__": np.array("{")}, "no JSON object"),
        ({"__tokens__": np.array([1]), "__about__": np.array('{"format": "x 9"}')}, "format `x 9`"),
        ({"__tokens__": np.array([1]), "a": np.array(["text"])}, "where numbers are wanted"),
        ({"__tokens__": np.array([1]), "a": np.array([object()])}, "is no trace"),
    ],
)
def test_a_trace_with_something_wrong_in_it_is_refused(tmp_path: Path, members: dict, says: str) -> None:
    np.savez(tmp_path / "x.npz", **members)
    with pytest.raises(BrioletteError, match=says):
        load(tmp_path / "x.npz")


def test_of_a_long_prompt_the_last_logits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recorded("gemma4_e2b")
    monkeypatch.setattr("briolette.engine.tracing.record.LOGITS", 5 * 80)
    for backend in ("cpu", "reference"):
        cut = record(model("gemma4_e2b", backend), tokens("gemma4_e2b"))
        assert cut.about["last_logits"] == 5
        assert {label for label, value in cut.values.items() if len(value) == 5} == {"main.logits", "main"}
        assert cut.told("main")["shape"] == [5, 80]
        assert np.allclose(cut.values["main"], whole.values["main"][-5:], atol=1e-3)
        for reference, ours in ((cut, whole), (whole, cut), (cut, None), (whole, None)):
            found = against("gemma4_e2b", reference, ours=ours)
            assert (found.findings, found.missing, found.extra) == ([], [], [])
            row = next(row for row in found.rows if row.label == "main")
            assert (len(row.theirs), row.note) == (5, "the last 5 tokens alone")
        shifted = replace(cut, values=cut.values | {"main": whole.values["main"][-6:-1]})
        assert against("gemma4_e2b", shifted).findings[0].row.label == "main"


def test_a_trace_needs_no_more_than_tokens_and_values(tmp_path: Path) -> None:
    """As another tool may write it."""
    np.savez(tmp_path / "x.npz", __tokens__=np.array([1, 2]), main=np.zeros((2, 80)))
    found = load(tmp_path / "x.npz")
    assert (found.precision, found.producer, list(found.named())) == ("f32", "x.npz", ["main"])
    assert found.told("main") == {}


def test_what_is_told_of_values_is_read_with_care() -> None:
    for told in ('{"values": 3}', '{"values": {"a": 3}}', '{"values": {"a": {"names": 3}}}'):
        odd = Recording(np.array([1], np.int32), {"a": np.zeros(1)}, json.loads(told))
        assert odd.named().keys() == {"a"}


def test_a_trace_is_as_readable_as_other_files(tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to(tmp_path / "run.npz")
    save(tmp_path / "link.npz", recorded("llama_plain"))
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "run.npz").stat().st_mode & 0o777 == 0o644


def test_of_another_engines_value_it_is_enough_to_say_where_it_is_made() -> None:
    right = recorded("llama_plain")
    values = dict(right.named())
    strange = {
        "blk.0.theirs": values["blk.0.attn_q"] + 1,
        **values,
        "blk.0.attn_output": values["blk.0.attn_output"] * 2,
    }
    about = {"precision": "f32", "values": {"blk.0.theirs": {"where": "model.py:3"}}}
    found = against("llama_plain", replace(right, values=strange, about=about))
    assert found.findings[0].row.label == "blk.0.attn_output"
