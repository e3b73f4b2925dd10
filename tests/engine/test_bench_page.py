"""`make bench`: the parts it measures on tiny models beside a stand-in, and the page that comes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from briolette.backends.cpu.ceilings import Ceilings
from briolette.engine.bench.measure import Case, Result
from briolette.engine.bench.run import Measured
from briolette.engine.bench.work import Work

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
import bench
from bench_page import Page, write
from test_bench import E2B, little_memory  # noqa: F401  the last is a fixture
from test_bench_peer import stand_in

SMALL = ("--prompt", 8, "--generate", 2, "--runs", 1, "--depth", "0,16", "--sequences", "1,3", "--layers", 1)


def made(tmp_path: Path, *more: object) -> tuple[str, dict]:
    """The page and the figures of a small `make bench`."""
    folder = tmp_path / "docs"
    given = (*SMALL, *more, "--peer", stand_in(tmp_path), "--output", folder)
    bench.main(list(map(str, given)))
    return (folder / "benchmarks.md").read_text(), json.loads((folder / "benchmarks.json").read_text())


def titles(picture: Path) -> list[str]:
    root = ElementTree.fromstring(picture.read_text())
    return [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]


def test_every_part_is_measured_and_told(tmp_path, monkeypatch):
    """The stand-in takes a second for everything; it cannot write a first token."""
    monkeypatch.setattr(bench, "model_files", lambda: [E2B])
    monkeypatch.setattr(bench, "cores", lambda: 2)
    page, found = made(tmp_path, "--without", "start")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## gemma4_e2b",
        "## Several sequences at once",
        "## By the number of layers",
    ]
    assert set(found["models"]) == set(found["sequences"]) == {"gemma4_e2b"}
    assert set(found["layers"]["gemma4-e2b"]) == {"1"}
    results = found["models"]["gemma4_e2b"]["results"]
    assert {(r["threads"], r["depth"]) for r in results} == {(2, 0), (2, 16), (1, 0)}
    assert {r["engine"] for r in results} == {"briolette", "briolette, fast prefill", "llama.cpp"}
    table = page.split("## Several")[1].split("## ")[0].splitlines()
    rows = [line.split(" | ") for line in table if line.startswith(("| 1 |", "| 3 |"))]
    assert [row[2] for row in rows] == ["2.0 (2.0 to 2.0)", "6.0 (6.0 to 6.0)"]
    for text in (page, json.dumps(found)):
        assert str(E2B.parent) not in text
    points = titles(tmp_path / "docs" / "benchmarks-sequences.svg")
    assert {"llama.cpp, 3: 6.0 tok/s (6.0 to 6.0)", "llama.cpp, 3: 2.0 tok/s (2.0 to 2.0)"} <= set(points)
    assert len(titles(tmp_path / "docs" / "benchmarks-layers.svg")) == 2
    assert {p.name for p in (tmp_path / "docs").glob("*.svg")} == {
        "benchmarks-gemma4_e2b.svg",
        "benchmarks-sequences.svg",
        "benchmarks-layers.svg",
    }
    assert all(f"]({p.name})" in page for p in (tmp_path / "docs").glob("*.svg"))


def test_ratios_are_those_of_the_columns_beside_them(tmp_path):
    """A peer that is slower while the second engine takes turns with it."""
    case, decode = Case("prefill", 128), Case("decode", 64)
    results = [
        Result("briolette", "f16", 2, case, Work(1, 1, 1), [1.0], 0),
        Result("llama.cpp", "f16", 2, case, None, [2.0], 0),
        Result("briolette", "f16", 2, decode, Work(1, 1, 1), [1.0], 0),
        Result("llama.cpp", "f16", 2, decode, None, [4.0], 0),
        Result("briolette, fast prefill", "f16", 2, case, Work(1, 1, 1), [0.5], 1),
        Result("llama.cpp", "f16", 2, case, None, [4.0], 1),
    ]
    ceilings = {2: Ceilings(2, read=1e9, integers=64e9, floats=1e9)}
    found = Measured({"model": {"file": None}}, ceilings, results, peer={"llama.cpp": "1"})
    text = write(Page(1, 128, 64, models={"some": found}), tmp_path)
    rows = [
        line.strip("| ").split(" | ")[3:-2] for line in text.splitlines() if line.startswith(("| prefill", "| dec"))
    ]
    assert rows == [
        [
            "128.0 (128.0 to 128.0)",
            "64.0 (64.0 to 64.0)",
            "**2.00**",
            "256.0 (256.0 to 256.0)",
            "32.0 (32.0 to 32.0)",
            "**8.00**",
        ],
        ["64.0 (64.0 to 64.0)", "16.0 (16.0 to 16.0)", "**4.00**", "", "", ""],
    ]
    shown = titles(tmp_path / "benchmarks-some.svg")
    assert sum(title.startswith("llama.cpp, 0:") for title in shown) == 2  # one of a prefill, one of a decode


def test_parts_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "model_files", lambda: [E2B])
    page, found = made(tmp_path, *(word for part in ("models", "layers", "start") for word in ("--without", part)))
    assert page.count("## ") == 1
    assert found["models"] == found["layers"] == found["start"] == {}
    assert [r["sequences"] for r in found["sequences"]["gemma4_e2b"]["results"]] == [1, 1, 3, 3]
    with pytest.raises(SystemExit):
        made(tmp_path, *(word for part in bench.PARTS for word in ("--without", part)))


def test_layers_without_room_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "model_files", lambda: [E2B])
    parts = [word for part in ("models", "start") for word in ("--without", part)]
    page, found = made(tmp_path, *parts, "--layers", "36")
    assert "gemma4-e2b has 1 to 35 layers" in capsys.readouterr().err
    assert found["layers"] == {"gemma4-e2b": {}}
    assert "By the number of layers" not in page


def test_a_row_of_layers_has_its_shares_of_the_ceilings(tmp_path):
    def of(layers: int) -> Measured:
        work = Work(bytes=64e6 * layers, macs=128e6 * layers, integers=256e6 * layers)
        prefill = Result("briolette", "f16", 2, Case("prefill", 128), work, [0.02, 0.04, 0.08])
        decode = Result("briolette", "f16", 2, Case("decode", 64), work, [0.5])
        about = {"model": {"file": None}}
        return Measured(about, {2: Ceilings(2, read=1e9, integers=64e9, floats=1e9)}, [prefill, decode])

    text = write(Page(3, 128, 64, layers={"some": {5: of(5), 10: of(10)}}), tmp_path)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| 5 ", "| 10 "))]
    assert rows == [
        ["5", "3200.0 (1600.0 to 6400.0)", "5 MMAC", "50%", "128.0 (128.0 to 128.0)", "5 MB", "64%"],
        ["10", "3200.0 (1600.0 to 6400.0)", "10 MMAC", "100%", "128.0 (128.0 to 128.0)", "10 MB", "128%"],
    ]
    assert titles(tmp_path / "benchmarks-layers.svg")[0] == "briolette, 5: 3200.0 tok/s (1600.0 to 6400.0)"
