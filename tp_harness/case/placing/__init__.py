"""Placements of parameters that no plan gives: guessed from shapes, and which of them must not be."""
