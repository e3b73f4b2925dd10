"""Weights are kept in the first way that fits: against plans of each way, with amounts of memory that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import briolette
from briolette.backends.base import Options, Source
from briolette.backends.cpu.programs import programs_of
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.compiler.ir import Module
from briolette.compiler.pipeline import front
from briolette.engine import available
from briolette.engine.available import Available
from briolette.engine.cli import app
from briolette.engine.fitting import fitted
from briolette.engine.gguf import open_gguf
from briolette.engine.memory import Planner
from briolette.engine.source import architecture

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
OPTIONS = Options(context=64, chunk=8, weights="packed")


def quantised(name: str) -> tuple[Header, Module]:
    """An oracle model's header as if its matrices were quantised, where they can be, and its program."""
    header = open_gguf(MODELS / f"{name}.gguf").header
    fits = {key: len(t.shape) > 1 and t.shape[-1] % 32 == 0 for key, t in header.tensors.items()}
    tensors = {key: replace(t, format="q5_1") if fits[key] else t for key, t in header.tensors.items()}
    header = replace(header, tensors=tensors)
    return header, front(architecture(None, header), header)


def given(count: int) -> Available:
    return Available(count, "a test gives")


def needed(header: Header, module: Module, weights: str) -> int:
    return Planner(header, module, OPTIONS.cache).plan(replace(OPTIONS, weights=weights)).beside_file


@pytest.mark.parametrize("name", ["gemma4_moe", "gemma4_moe_split"])
def test_experts_leave_memory_first_and_then_the_rest(name):
    header, module = quantised(name)
    packed, mixed, mapped = (needed(header, module, weights) for weights in ("packed", "mixed", "mapped"))
    assert packed > mixed > mapped
    kept = {1 << 60: "packed", packed: "packed", packed - 1: "mixed", mixed: "mixed", mixed - 1: "mapped", 0: "mapped"}
    for count, weights in kept.items():
        assert fitted(header, module, OPTIONS, "cpu", given(count)) == replace(OPTIONS, weights=weights)
    asked = replace(OPTIONS, weights="mixed")
    assert fitted(header, module, asked, "cpu", given(packed)) == asked


def test_without_experts_all_are_packed_or_none():
    header, module = quantised("gemma4_plain")
    packed = needed(header, module, "packed")
    assert needed(header, module, "mixed") == packed > needed(header, module, "mapped")
    assert fitted(header, module, OPTIONS, "cpu", given(packed)).weights == "packed"
    assert fitted(header, module, OPTIONS, "cpu", given(packed - 1)).weights == "mapped"


def test_what_was_asked_for_is_kept_or_an_error():
    header, module = quantised("gemma4_moe")
    packed = needed(header, module, "packed")
    assert fitted(header, module, OPTIONS, "cpu", given(packed), asked=True) == OPTIONS
    with pytest.raises(BrioletteError, match=r"packed weights, .* takes .* that a test gives; .* mixed .*, mapped "):
        fitted(header, module, OPTIONS, "cpu", given(packed - 1), asked=True)
    plain = replace(OPTIONS, weights="mapped")
    assert fitted(header, module, plain, "cpu", given(0), asked=True) == plain


def test_no_more_programs_are_made_than_are_looked_at():
    header, module = quantised("gemma4_moe")
    source = Source(lambda: module)
    assert fitted(header, source, OPTIONS, "cpu", given(1 << 40)) == OPTIONS
    records = programs_of(source).records
    assert [wanted[3] for wanted in records] == ["packed"]
    fitted(header, source, OPTIONS, "cpu", given(needed(header, module, "mixed")))
    assert [wanted[3] for wanted in records] == ["packed", "mixed"]


def test_what_is_beside_the_file_needs_no_whole_plan():
    header, module = quantised("gemma4_moe")
    for backend in ("cpu", "reference"):
        planner = Planner(header, module, OPTIONS.cache, backend)
        for options in (OPTIONS, replace(OPTIONS, weights="mapped", sequences=3, chunk=2)):
            assert planner.beside_file(options) == planner.plan(options).beside_file


def test_loading_goes_by_the_memory_there_is(monkeypatch):
    path = MODELS / "gemma4_moe.gguf"
    monkeypatch.setattr(available, "available_memory", lambda: given(1))
    loaded = briolette.load(path, context=64)
    assert loaded.options.weights == "mapped"
    loaded.close()
    with pytest.raises(BrioletteError, match="that a test gives"):
        briolette.load(path, context=64, weights="packed")


def test_plan_says_how_weights_are_kept():
    path = str(MODELS / "gemma4_moe.gguf")
    for weights in ("packed", "mixed", "mapped"):
        found = CliRunner().invoke(app, ["plan", path, "--weights", weights, "--ctx", "64", "--json"])
        assert f'"weights_kept": "{weights}"' in found.stdout
    tight = CliRunner().invoke(app, ["plan", path, "--ctx", "64", "--memory", "1MB", "--json"])
    assert '"weights_kept": "mapped"' in tight.stdout
