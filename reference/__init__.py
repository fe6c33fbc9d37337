"""Single-core references."""
