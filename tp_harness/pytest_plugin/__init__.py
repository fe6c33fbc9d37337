"""The pytest plugin: tests that need 1, 2, 8 or 32 cores, side by side on one pool. docs/pytest.md shows it.

plugin.py holds options and hooks; worker.py is the side that runs tests, result_collector.py the side that collects
what they found. Every pytest of an environment that has tp-harness loads it, so nothing heavy is imported before it is
needed.
"""
