"""A test's body in a forked child of the worker, so that what it opens is closed when it ends: a NeuronCore above all.

Fixtures are set up and torn down in the worker; only the function itself is called in the child. Its output, its
properties and how it ended come back. Not covered: whatever else the body changes in memory is lost with the child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from ..launch.process import die_with_parent, fork_child
from ..libraries.pytest_private import argument_names
from ..system.environment import become
from .report_properties import reason_of, status_of


def call_in_child(item: pytest.Function, env: Mapping[str, str]) -> None:
    """Call the item's function with its fixtures in a child whose environment is `env`.

    Raises:
        pytest.fail.Exception: it failed; the text is what pytest would have shown. Skips and xfails come out likewise.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = fork_child(partial(_be_child, item, env, os.getpid(), writer))
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as stream:
            text = stream.read()
    except BaseException:  # a timeout, or Ctrl-C
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if not text:
        pytest.fail(f"the process of this test {_end_of(status)}", pytrace=False)
    outcome = json.loads(text)
    item.user_properties.extend((name, value) for name, value in outcome["properties"])
    if outcome["kind"] == "skipped":
        pytest.skip(outcome["text"])
    if outcome["kind"] == "xfailed":
        pytest.xfail(outcome["text"])
    if outcome["kind"] == "failed":
        failure = pytest.fail.Exception(outcome["text"], pytrace=False)
        failure.status, failure.reason = outcome["status"], outcome["reason"]  # type: ignore[attr-defined]
        raise failure


def _be_child(item: pytest.Function, env: Mapping[str, str], worker: int, writer: int) -> None:
    die_with_parent(worker)
    become(env)
    before = len(item.user_properties)
    outcome = _call(item) | {"properties": item.user_properties[before:]}
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(writer, "wb") as stream:
        stream.write(json.dumps(outcome, default=str).encode())


def _call(item: pytest.Function) -> dict[str, Any]:
    try:
        item.obj(**{name: item.funcargs[name] for name in argument_names(item)})
    except pytest.skip.Exception as skip:
        return {"kind": "skipped", "text": str(skip.msg)}
    except pytest.xfail.Exception as xfail:
        return {"kind": "xfailed", "text": str(xfail.msg)}
    except BaseException as error:
        caught = pytest.ExceptionInfo.from_current()
        said = {"status": status_of(error), "reason": reason_of(caught)}
        return {"kind": "failed", "text": str(item.repr_failure(caught)), **said}
    return {"kind": "passed", "text": ""}


def _end_of(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"left with exit code {os.waitstatus_to_exitcode(status)}"
