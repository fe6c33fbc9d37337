"""Where virtual ranks were: read from the log of the process that holds them; and that waiting is where it is said."""

from __future__ import annotations

import ast
import os
import threading
from pathlib import Path

import pytest
from tp_harness.launch import LaunchOutcome
from tp_harness.launch.outcome import RunFacts, outcome_of
from tp_harness.launch.progress import Progress
from tp_harness.launch.rank import be_thread
from tp_harness.launch.stacks import Stack, frames_by_thread, suspects

from tp_harness.backends.virtual_stacks import virtual_stacks, whereabouts
from tp_harness.backends.xla import of_ranks
from tp_harness.xla import rendezvous

MEETING = Path(rendezvous.__file__)


def frame(file: str, function: str) -> str:
    return f'  File "{file}", line 7 in {function}'


OUTER = (
    frame("/venv/tp_harness/backends/xla.py", "be_rank"),
    frame("/venv/tp_harness/xla/virtual_cores.py", "rank"),
    frame("/venv/site-packages/torch_xla/_internal/pjrt.py", "_thread_fn"),
    frame("/lib/concurrent/futures/thread.py", "_worker"),
    frame("/lib/threading.py", "_bootstrap"),
)
WAITS = (frame("/lib/threading.py", "wait"), frame(str(MEETING), "exchange"), frame("/venv/rank.py", "run_job"))
WORKS = (frame("/home/me/mine.py", "reduce"), frame("/venv/rank.py", "run_job"))


def log(*stacks: tuple[str, ...]) -> str:
    """As the process of so many ranks writes it: thread 0x1a0 is rank 0, and so on; an idle and the main thread too."""
    lines: list[str] = []
    threads = {0x1A0 + rank: (*stack, *OUTER) for rank, stack in enumerate(stacks)} | {0x9: OUTER[3:]}
    for ident, frames in threads.items():
        lines += [f"Thread {ident:#018x} (most recent call first):", *frames, ""]
    lines += ["Current thread 0x00000000000000ff (most recent call first):", frame("/venv/x.py", "_call_entry")]
    return "\n".join(lines)


def threads(count: int) -> tuple[tuple[int, int], ...]:
    """Rank and thread, in the order in which they happened to begin."""
    return tuple((rank, 0x1A0 + rank) for rank in reversed(range(count)))


def test_a_rank_s_stack_is_its_thread_s_without_what_starts_ranks() -> None:
    stacks = virtual_stacks(log(WAITS, WORKS, WAITS), threads(3))
    assert {rank: stack.frames for rank, stack in stacks.items()} == {0: WAITS, 1: WORKS, 2: WAITS}
    assert whereabouts(stacks, 3) == ("all 3 ranks were still running, and rank 1 is not where the others wait for it")


def test_a_rank_that_has_returned_is_not_running_and_nobody_waits_for_it() -> None:
    stacks = virtual_stacks(log((), WAITS, WORKS, WORKS), threads(4))
    assert list(stacks) == [1, 2, 3]
    assert whereabouts(stacks, 4) == (
        "ranks 1, 2, 3 of 4 were still running, and ranks 2, 3 are not where the others wait for them"
    )


@pytest.mark.parametrize("stack", [WAITS, WORKS], ids=["all_wait", "all_work"])
def test_where_all_do_the_same_none_is_awaited(stack: tuple[str, ...]) -> None:
    assert whereabouts(virtual_stacks(log(stack, stack), threads(2)), 2) == "all 2 ranks were still running"


def test_of_two_stacks_of_a_thread_the_later_counts() -> None:
    text = log(WORKS, WAITS) + "\n" + log(WAITS, WORKS)
    assert virtual_stacks(text, threads(2))[1].frames == WORKS
    assert frames_by_thread("no stack here") == {0: ()}
    assert virtual_stacks("", threads(2)) == {}


def test_a_thread_says_which_rank_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    be_thread(3)  # where no launcher listens
    reader, writer = os.pipe()
    monkeypatch.setattr("tp_harness.launch.rank._told", (writer, 0))
    be_thread(3)
    progress = Progress(RunFacts(size=1, log_dir=Path(), timeout=None, start_timeout=1.0))
    progress.read(os.read(reader, 4096))
    outcome = outcome_of(progress.record, retries=0, start_seconds=0.0, seconds=0.0)
    assert outcome.threads == ((3, threading.get_ident()),)
    text = f"Thread {threading.get_ident():#018x} (most recent call first):\n{WORKS[0]}\n"
    assert virtual_stacks(text, outcome.threads) == {3: Stack(frames=WORKS[:1])}


def waits_outside(text: str) -> list[str]:
    """Calls that wait for a program with collectives, other than in `awaited(...)`."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    inside = {id(node) for call in calls if ast.unparse(call.func) == "awaited" for node in ast.walk(call)}
    names = {"cpu", "_xla_wait_device_ops", "item", "tolist"}
    waiting = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in names]
    return [ast.unparse(call) for call in waiting if id(call) not in inside]


def test_a_rank_that_waits_is_in_the_file_that_says_so() -> None:
    """Else messages would name it as one that the others wait for."""
    assert waits_outside((MEETING.parent / "device.py").read_text()) == []
    assert waits_outside("a = awaited(lambda: x.cpu())\nb = x.cpu()\nwait = x._xla_wait_device_ops(d)") == [
        "x.cpu()",
        "x._xla_wait_device_ops(d)",
    ]


def ended(kind: str, message: str, **fields: object) -> LaunchOutcome:
    values = {
        "ok": False,
        "kind": kind,
        "message": message,
        "size": 1,
        "failed_rank": 0,
        "threads": threads(2),
    } | fields
    return LaunchOutcome(**values)  # type: ignore[arg-type]  # fields of LaunchOutcome


def test_a_timeout_names_the_awaited_rank_and_shows_all_stacks(tmp_path: Path) -> None:
    path = tmp_path / "rank0.log"
    path.write_text(log(WAITS, WORKS))
    late = "the ranks did not finish a case: of one's own within 20 s"
    outcome = ended("timeout", f"{late}: rank 0 of 1 was still running; their logs in x say where", late=late)
    told = of_ranks(outcome, 2, path)
    assert told.message == (
        f"{late}: all 2 ranks were still running, and rank 1 is not where the "
        f"others wait for it; log of all 2 ranks: {path}"
    )
    assert (told.failed_rank, told.unfinished_ranks) == (1, (0, 1))
    assert told.traceback is not None and "/home/me/mine.py" in told.traceback and "rank 0, innermost" in told.traceback
    path.write_text("")
    assert "was stopped by a signal, or did not say where they were" in of_ranks(outcome, 2, path).message


def test_an_abort_by_xla_names_it_too(tmp_path: Path) -> None:
    path = tmp_path / "rank0.log"
    path.write_text("E0000 rendezvous.cc:92] This thread may be stuck\n" + log(WAITS, WORKS))
    told = of_ranks(ended("crash", "rank 0 of 1 was killed by SIGABRT", signal_name="SIGABRT"), 2, path)
    assert "XLA aborted the process" in told.message
    assert "rank 1 is not where the others wait for it" in told.message
    assert suspects(virtual_stacks(path.read_text(), threads(2))) == (1,)
