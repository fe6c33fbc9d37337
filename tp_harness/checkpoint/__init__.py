"""Tensors in files: checkpoints as they are published, and weights that repeat."""
