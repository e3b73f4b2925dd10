"""Measuring: how fast models run here, how much of what the machine can do that is, and where the time goes."""
