"""Rewrite rules, one file a theme. Rules only: the driver lives in `compiler/rewrite.py`."""
