"""`python -m tp_harness`."""

from .cli import script

if __name__ == "__main__":  # processes that are started anew import this too
    script()
