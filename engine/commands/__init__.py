"""What the commands of `briolette` do; `engine/cli.py` says how they are called."""
