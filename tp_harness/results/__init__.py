"""What a run found, and its form on disk. No torch."""
