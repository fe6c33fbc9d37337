"""`tp-harness doctor`: what this machine can run, and what in it would spoil a verdict.

    facts (read) -> findings (judged) -> show (printed)

No torch, no torch_xla: versions come from installed metadata, devices from /proc, /sys and /dev.
"""
