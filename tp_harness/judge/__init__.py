"""From what the ranks left to a verdict."""
