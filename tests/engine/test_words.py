"""Numbers as people read them: the same wherever they are shown."""

from __future__ import annotations

import pytest

from briolette.compiler.diffing.tables import value_text
from briolette.compiler.errors import BrioletteError
from briolette.compiler.text import plain
from briolette.engine.words import ids_of, short_count, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 29, "1.50 GiB"),
        (1 << 41, "2.00 TiB"),
    ],
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (1000, "1.0 k"), (268_098_176, "268.1 M"), (4_647_450_147, "4.6 B")]
)
def test_counts(count, text):
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e6, "1000000"),
        (1e-6, "1e-06"),
        (10000, "10000"),
        (0.0625, "0.0625"),
        (None, "none"),
        (True, "true"),
        ("a", "a"),
    ],
)
def test_values_of_a_spec(value, text):
    assert plain(value) == value_text(value) == text


def test_token_ids():
    assert ids_of("2, 5,9", "--ids") == [2, 5, 9]
    for text in ("", "2,", "2,x", "2 5"):
        with pytest.raises(BrioletteError, match="--ids takes numbers with commas between them, such as 2,5,9"):
            ids_of(text, "--ids")
