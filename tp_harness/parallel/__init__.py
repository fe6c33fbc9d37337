"""The vocabulary of tensor parallelism: groups, placements and recorded collectives."""
