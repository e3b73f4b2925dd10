"""Pages that are written from something else: told to be stale, or written anew."""

from __future__ import annotations

import sys
from pathlib import Path


def kept(page: Path, text: str, complaint: str) -> int:
    """The exit code: 0 where the page is as it would be written now, or has been with `--update`; else 1, with the
    complaint on standard error."""
    if page.exists() and page.read_text(encoding="utf-8") == text:
        return 0
    if "--update" in sys.argv[1:]:
        page.write_text(text, encoding="utf-8")
        return 0
    print(complaint, file=sys.stderr)
    return 1
