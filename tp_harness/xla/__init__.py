"""torch-xla below the sharded modules: their collectives, their programs, and virtual cores to run them on.

Nothing here is imported before the environment variables are set that torch-xla reads when it is loaded.
"""
