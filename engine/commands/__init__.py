"""What the commands of `briolette` do; `engine/cli/` says how they are called."""
