"""Measuring quality: perplexity, divergence from a baseline, and what is found again in a long text."""
