"""Says whether a tensor-parallel model is the same function as its single-core reference."""
