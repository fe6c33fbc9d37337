"""Tensors of a sharded module that have other names than the reference's: of what they are made."""
