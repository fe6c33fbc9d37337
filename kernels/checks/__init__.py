"""What holds interpreter and kernels to their promises: rule cases, accuracy cases, mutants, a report."""
