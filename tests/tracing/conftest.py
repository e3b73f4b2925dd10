"""Lets the tests of this room import the helpers that lie beside them, and the mutations of the room `spec`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "spec")]
