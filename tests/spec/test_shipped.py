"""What the architecture files that come with the package promise."""

from __future__ import annotations

from collections import defaultdict

import pytest
import tiny

from briolette.compiler.elaborate import elaborate
from briolette.compiler.header import Header
from briolette.spec.errors import SpecError
from briolette.spec.syntax import load, parse, shipped

HEADERS: dict[str, list[Header]] = defaultdict(list)
for _path in sorted(tiny.ORACLE.glob("*.gguf")):
    _header = tiny.oracle_header(_path.stem)
    HEADERS[_header.architecture].append(_header)


def refused(text: str, headers: list[Header]) -> bool:
    try:
        tree = parse(text)
        for header in headers:
            elaborate(tree, header)
    except SpecError:
        return True
    return False


@pytest.mark.parametrize("name", shipped())
def test_a_lost_line_is_noticed_when_a_file_is_loaded(name: str) -> None:
    """Whoever deletes a line of a shipped file hears of it before any token is computed."""
    lines = shipped()[name].read_text(encoding="utf-8").split("\n")
    for place, line in enumerate(lines):
        code = line.partition("#")[0].strip()
        if code and not code.startswith(("ignore", "require")):
            assert refused("\n".join(lines[:place] + lines[place + 1 :]), HEADERS[name]), line


@pytest.mark.parametrize("name", shipped())
def test_file_name_and_architecture_are_the_same(name: str) -> None:
    assert load(shipped()[name]).name == name


def test_gemma4_is_a_page() -> None:
    lines = shipped()["gemma4"].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        # What llama.cpp's converters (conversion/*.py, gguf-py/gguf/constants.py) and older ones also write.
        ("llama_plain", {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}),
        ("llama_plain", {"rope__scaling__type": "none"}),
        ("llama_plain", {"rope__scale_linear": 4.0}),
        (
            "llama_plain",
            {"tensor_data_layout": "Meta AI original pth", "expert_count": 0, "expert_used_count": 0},
        ),
        ("llama_plain", {"rope__freq_base": None, "rope__dimension_count": None}),
        ("gemma2_caps", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "vocab_size": 80}),
        ("gemma3_array", {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}),
        ("gemma3_period", {"attention__sliding_window": None, "attention__sliding_window_pattern": None}),
        ("gemma4_plain", {"vocab_size": 80}),
        ("qwen3_tied", {"rope__scaling__type": "none", "vocab_size": 80}),
    ],
)
def test_other_spellings_of_a_file_are_read(name: str, keys: dict[str, object]) -> None:
    header = tiny.oracle_header(name, **keys)
    elaborate(load(shipped()[header.architecture]), header)
