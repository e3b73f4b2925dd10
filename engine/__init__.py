"""The engine: what a person uses. Model files, tokenizers, sessions, sampling and the command line."""
