"""The user-facing error, re-exported for the rooms that may not import `spec`."""

from briolette.spec.errors import BrioletteError as BrioletteError
