"""The compiler: an architecture's syntax tree and a model's header become an optimised program."""
