"""Traces: what every named value of a program was, and where two programs part."""
