"""What the system is told of a mapped file: large pages are for weights that are read where they lie."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import briolette

E2B = Path(__file__).resolve().parents[1] / "oracle" / "models" / "gemma4_e2b.gguf"
LARGE = Path("/sys/kernel/mm/transparent_hugepage")


def flags(path: Path) -> set[str]:
    """Of all mappings of a file in this process."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    ours = [part for part in parts if part.split("\n")[0].endswith(str(path))]
    assert ours
    return {flag for part in ours for flag in re.search(r"VmFlags: (.*)", part)[1].split()}


@pytest.mark.skipif(not LARGE.exists(), reason="this system has no large pages, or does not tell")
@pytest.mark.parametrize(("weights", "scattered"), [("packed", True), ("mixed", False), ("mapped", False)])
def test_small_parts_map_no_large_pages(weights, scattered, tmp_path):
    path = Path(shutil.copy(E2B, tmp_path))  # other tests may have the file itself open
    model = briolette.load(path, context=32, threads=1, weights=weights)
    model.engine.prepare()
    assert ("nh" in flags(path)) is scattered  # MADV_NOHUGEPAGE
    model.close()
