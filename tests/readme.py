"""Keeps the architecture that README.md shows equal to spec/gemma4.arch.

python tests/readme.py             # exit code 1 where they differ
python tests/readme.py --update    # write the file's text into the README
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fresh import kept

ROOT = Path(__file__).resolve().parents[1]
README, SPEC = ROOT / "README.md", ROOT / "spec" / "gemma4.arch"
SHOWN = re.compile(r"(?<=^```arch\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


def refreshed(readme: str, spec: str) -> str:
    """The README with the spec's text in the place of its one `arch` block."""
    new, count = SHOWN.subn(lambda _: spec, readme)
    if count != 1:
        sys.exit(f"{README.name} should have one block that begins with ```arch, and it has {count}")
    return new


def main() -> int:
    text = refreshed(README.read_text(encoding="utf-8"), SPEC.read_text(encoding="utf-8"))
    return kept(README, text, f"{README.name} does not show {SPEC.name} as it is: python tests/readme.py --update")


if __name__ == "__main__":
    sys.exit(main())
