"""Casting tensors and modules to the dtype under test."""
