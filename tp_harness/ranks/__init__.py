"""What one rank does, and what it leaves."""
