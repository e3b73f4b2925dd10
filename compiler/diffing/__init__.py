"""How two programs differ: matching their nodes, the edit script, and hunks that a person can read."""
