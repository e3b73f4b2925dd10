"""Briolette: an LLM architecture is one readable text file; a compiler turns it into engines that run.

>>> import briolette
>>> model = briolette.load("gemma-3-270m.gguf")          # doctest: +SKIP
>>> print(*model.generate("The capital of France"), sep="")  # doctest: +SKIP
"""

from briolette.compiler.errors import BrioletteError
from briolette.engine.model import Model, compile, load

__all__ = ["BrioletteError", "Model", "compile", "load"]
__version__ = "0.1.0"
