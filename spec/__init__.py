"""The architecture language: grammar, syntax tree, formatter, diagnostics and the shipped `.arch` files."""
