"""`python -m tp_harness`."""

from .cli import script

script()
