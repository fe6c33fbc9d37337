"""NKI kernels of gpt-oss (none yet: the sharded modules run in torch)."""
