"""Briolette: an LLM architecture is one readable text file; a compiler turns it into engines that run."""
