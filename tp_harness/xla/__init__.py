"""Running sharded modules through torch-xla: their collectives, their compiled programs, and virtual cores.

No module of this folder that imports torch_xla may be imported before the environment variables that it reads are set.
"""
