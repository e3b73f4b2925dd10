"""`briolette kv-tune`: bytes against the allocator's, choices against all there are, a small model from end to end."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from briolette.compiler.errors import BrioletteError
from briolette.compiler.policy import policy_named
from briolette.engine.backends import backend_named
from briolette.engine.cli import app
from briolette.engine.commands import tune as command
from briolette.engine.gguf import open_gguf
from briolette.engine.model import options_for
from briolette.engine.source import source_of
from briolette.engine.tuning import costs as tuning_costs
from briolette.engine.tuning import run
from briolette.engine.tuning.choice import Predictions, choose, hull
from briolette.engine.tuning.costs import CODECS, Costs, costs_of

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
LLAMA, CAPS, E2B = MODELS / "llama_scaled.gguf", MODELS / "gemma2_caps.gguf", MODELS / "gemma4_donors.gguf"
LINE = "the rain in spain is in the stars, and a siren sings to the sea at noon. the sea is in the rain. "


def called(*args: object, code: int = 0) -> str:
    """What `briolette kv-tune` prints; on stderr where it is a mistake."""
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["kv-tune", *map(str, args)], prog_name="briolette")
    assert found.exit_code == code, found.output
    return found.stderr if code else found.stdout


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tune") / "text.txt"
    path.write_text(LINE * 6)
    return path


# --- bytes and policies -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [CAPS, E2B], ids=["caps", "donors"])
def test_bytes_of_a_choice_are_those_of_its_policy(model):
    """Of random choices, by the plan of the policy that they are spelled as, which has these types in these layers."""
    file = open_gguf(model)
    source = source_of(None, file.header)
    options = options_for(file, "bf16", 1, 400, 32, made=source)
    costs, rng = costs_of(source, options, "cpu", 4, 16), random.Random(1)
    for types in (CODECS, ("tq3", "bf16"), ("tq4",), ("bf16",)):
        choice = {side: rng.choice(types) for side in costs.sides}
        policy = costs.spelled(choice)
        keeps = policy_named(policy).keeps(source.module)
        assert {(slot, plane): getattr(keep, plane) for slot, keep in keeps.items() for plane in "kv"} == choice
        taken = backend_named("cpu").memory(source, policy)(options)
        assert costs.bytes(choice) == sum(plane.bytes for plane in taken.planes)


def test_layers_that_no_codec_can_keep_stay_plain(monkeypatch):
    """Heads of 24 in the global layers, of 8 in the others: no Walsh-Hadamard rotation."""
    file = open_gguf(MODELS / "gemma4_e2b.gguf")
    source = source_of(None, file.header)
    options = options_for(file, "bf16", 1, 400, 32, made=source)
    costs = costs_of(source, options, "cpu", 4, 16)
    assert {costs.heads[side] for side, types in costs.sides.items() if len(types) == 1} == {24}
    assert {costs.heads[side] for side, types in costs.sides.items() if len(types) > 1} == {8}
    monkeypatch.setattr(tuning_costs, "possible", lambda source, policy: False)
    with pytest.raises(BrioletteError, match="no layer of this model can keep its cache in tq2"):
        costs_of(source, options, "cpu", 4, 16)


def test_policies_are_spelled_in_ranges():
    costs = Costs({(slot, plane): {} for slot in (0, 1, 2, 5) for plane in "kv"}, {}, {}, 0, {}, ";sink=0;recent=0")
    plain = {side: "bf16" for side in costs.sides}
    assert costs.spelled(plain) == "all=bf16;sink=0;recent=0"
    assert costs.spelled(plain | {(2, "k"): "tq4", (2, "v"): "tq4", (5, "k"): "tq4", (5, "v"): "tq4"}) == (
        "all=bf16;2-5=tq4;sink=0;recent=0"
    )
    assert costs.spelled({(1, "k"): "tq2", (1, "v"): "f32"}, "f32") == "all=f32;1=k:tq2,v:f32;sink=0;recent=0"


# --- choices ----------------------------------------------------------------------------------------


def of_random(seed: int, layers: int) -> Predictions:
    """Sides that differ in bytes and in how much they matter."""
    rng = random.Random(seed)
    sides = {(slot, plane): rng.choice((1, 3)) for slot in range(layers) for plane in "kv"}
    bits = {name: int(name[2:]) for name in CODECS} | {"bf16": 16}
    taken = {side: {name: count * scale for name, count in bits.items()} for side, scale in sides.items()}
    plain = {side: types["bf16"] for side, types in taken.items()}
    costs = Costs(taken, dict.fromkeys(range(layers), 0), plain, 0, dict.fromkeys(sides, 64), "")
    measured = {}
    for side in sides:
        coarse = 10 ** rng.uniform(-4, -1)
        measured[side] = {"tq2": coarse, "tq4": coarse * rng.uniform(0.02, 0.2)}
    return Predictions(costs, measured)


@pytest.mark.parametrize("seed", range(3))
def test_no_choice_is_better_but_for_the_bytes_of_one_step(seed):
    """Of all that there are with two layers: what is left of a budget is less than the next step takes."""
    predictions = of_random(seed, 2)
    costs, sides = predictions.costs, list(predictions.costs.sides)
    every = [dict(zip(sides, names, strict=True)) for names in itertools.product(*(costs.sides[s] for s in sides))]
    of = {(side, name): predictions.of(side, name) for side in sides for name in costs.sides[side]}
    valued = [(costs.bytes(choice), sum(of[each] for each in choice.items())) for choice in every]
    least, most = min(valued)[0], max(valued)[0]
    step = 3 * (16 - 2)
    for budget in (least, least + step, (least + most) // 2, most - 1, most):
        chosen = choose(predictions, budget)
        within = [kld for taken, kld in valued if taken <= max(least, budget - step)]
        assert costs.bytes(chosen) <= budget
        assert predictions.total(chosen) <= min(within) * (1 + 1e-9)
    assert set(choose(predictions, most).values()) == {"bf16"}
    assert set(choose(predictions, least).values()) == {"tq2"}


def test_a_hull_leaves_out_what_is_worth_nothing():
    points = {"a": (1, 1.0), "b": (2, 0.9), "c": (3, 0.2), "d": (4, 0.3), "e": (6, 0.1)}
    assert hull(points) == ["a", "c", "e"]


def test_predictions_are_what_was_measured_and_follow_the_error_elsewhere():
    predictions, side = of_random(1, 1), (0, "k")
    error, measured = predictions.costs.error, predictions.measured[side]
    for name, kld in measured.items():
        assert predictions.of(side, name) == pytest.approx(kld)
    assert measured["tq4"] < predictions.of(side, "tq3") < measured["tq2"]
    for name in ("tq5", "tq6", "tq8", "bf16"):
        assert predictions.of(side, name) == pytest.approx(measured["tq4"] * error(side, name) / error(side, "tq4"))


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(text) -> tuple[object, ...]:
    sizes = ("--ctx", 400, "--window", 48, "--chunks", 1, "--chunk", 32, "--sink", 0, "--recent", 0)
    return (LLAMA, "--text", text, *sizes, "--threads", 2, "--bits", 4, "--points", 1)


def test_a_policy_is_chosen_and_measured(given, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "PRESETS", ("all=tq4;sink=0;recent=0",))  # in the place of three, which take their time
    whole = called(*given, "--memory", "30KB", "--plot", tmp_path / "plot.html", "--json")
    found = json.loads(whole)
    assert found["other_windows"]
    assert {(s["layer"], s["plane"]) for s in found["sensitivities"]} == {(i, p) for i in range(4) for p in "kv"}
    assert all(1e-7 < s["kld"]["tq4"] < 1 for s in found["sensitivities"])
    chosen = next(row for row in found["rows"] if row["chosen"])
    uniform = next(row for row in found["rows"] if row["preset"])
    assert chosen["policy"] == found["policy"]
    assert chosen["bytes"] <= 30000
    assert [row["bytes"] for row in found["rows"]] == sorted(row["bytes"] for row in found["rows"])
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(found["f16_bytes"] / row["bytes"])
        assert row["mean_kld"] > 0
    # Errors of single sides add up, on this text as on that which measured them.
    assert uniform["predicted_kld"] == pytest.approx(sum(s["kld"]["tq4"] for s in found["sensitivities"]))
    assert uniform["mean_kld"] == pytest.approx(uniform["predicted_kld"], rel=0.7)
    told = (tmp_path / "plot.html").read_text()
    picture = told[told.index("<svg") : told.index("</svg>") + 6]
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert told.count("<tr") == 1 + len(found["rows"])


def test_ctrl_c_ends_it_and_what_it_loaded(given, monkeypatch, closed, interrupted):
    monkeypatch.setattr(command, "TELLING", interrupted)
    assert called(*given, "--memory", "30KB", code=130) == ""
    assert closed == ["bar"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--memory", "1KB"), "the cache takes"),
        (("--memory", "some"), "'some' is no amount of memory"),
        (
            ("--memory", "30KB", "--bits", "7"),
            "--bits takes some of 2, 3, 4, 5, 6, 8 with commas between them, not '7'",
        ),
        (("--memory", "30KB", "--plot", "x.png"), "--plot writes .html or .svg, not x.png"),
        (("--memory", "30KB", "--window", 4000), "and a window takes 4000"),
    ],
)
def test_mistakes_are_told(given, more, words):
    assert words in " ".join(called(*given, *more, code=2).split())
