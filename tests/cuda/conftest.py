"""Lets the tests of this room import the helpers that lie beside them, and those of the other backends' tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "backends")]
