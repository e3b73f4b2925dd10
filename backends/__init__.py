"""Backends: an optimised program becomes something that runs."""
