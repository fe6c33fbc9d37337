"""The flow of `tp-harness verify`."""
