"""A parent that does not notice that its child has ended is ended; one that does is left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PATIENCE = 60.0  # seconds until a test gives up; never the measure of a pass

# A parent deaf to SIGTERM, as torchrun is inside a call that does not return. Its child calls the usher and ends.
PARENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not os.fork():
    from tp_harness.launch.kill_torchrun import end_parent_soon
    end_parent_soon(float(sys.argv[1]))
    os._exit(3)
os.wait()
time.sleep(float(sys.argv[2]))
sys.exit(1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no pidfd here")
@pytest.mark.parametrize(("patience", "deaf", "code"), [(0.1, 3600.0, -9), (3600.0, 0.0, 1)], ids=["deaf", "ends"])
def test_a_parent_that_does_not_end_is_killed(patience: float, deaf: float, code: int) -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT, str(patience), str(deaf)], timeout=PATIENCE, check=False)
    assert parent.returncode == code
