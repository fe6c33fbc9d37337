"""How good the harness is: faults that it must catch, and clean runs that it must pass."""
