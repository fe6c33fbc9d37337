"""What numbers a run computes with."""
