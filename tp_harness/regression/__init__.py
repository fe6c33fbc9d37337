"""Two runs side by side. No torch."""
