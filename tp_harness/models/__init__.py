"""The models that the harness knows, one folder a family."""
