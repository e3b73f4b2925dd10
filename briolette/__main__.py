"""`python -m briolette` is the command `briolette`."""

from briolette.engine.cli import main

main()
