"""The placement of each parameter: planned, marked, or guessed from shapes; tried before anything is loaded."""
