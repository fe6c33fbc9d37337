"""Python stacks of the ranks of a hanging run, requested by a signal, and which ranks the others wait for. No torch.

Every rank writes its stack into its log when it gets a signal (`dump`, also inside a C++ collective). A stopped process
cannot; it is continued for that, after the others were killed: with them it might finish its work.
"""

import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .dump import ASK, INSIST
from .process import process_state
from .waits import WAITING, waiting_call

_PATIENCE = 2.0  # seconds, at most, for ranks to write their stacks once they were asked
_FRAME = re.compile(r'^  File "(?P<file>.*)", line \d+ in (?P<function>.*)$')
_THREAD = re.compile(r"^(?:Current thread|Thread) (?P<ident>0x[0-9a-f]+)")
_LAUNCHER = re.compile(r'rank\.py", line \d+ in _call_entry$')  # frames from here on are the launcher's
_WHOLE = re.compile(r'rank\.py", line \d+ in run_rank$|^  \.\.\.$', re.MULTILINE)  # or faulthandler's hundred frames


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One rank's stack, innermost frame first.

    Args:
        frames: its lines, from where the rank was to the entry function; () when it wrote none.
        stopped: its process had been stopped by a signal (SIGSTOP, SIGTSTP, SIGTTIN).
    """

    frames: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def waits(self) -> bool:
        """Whether the rank is inside a collective, waiting for its peers."""
        files = (match["file"] for line in self.frames if (match := _FRAME.match(line)))
        return not self.stopped and any(part in file for file in files for part in WAITING)


def collect_stacks(pids: Mapping[int, int], logs: Mapping[int, Path]) -> dict[int, Stack]:
    """Make ranks write their stacks into their logs, and read them from there. Kills all ranks if any was stopped.

    Args:
        pids: process id by rank.
        logs: log by rank.

    Returns:
        A stack for each rank of `pids`.
    """
    before = {rank: size_of(logs[rank]) for rank in pids}
    stopped = {rank for rank, pid in pids.items() if is_stopped(pid)}
    for rank in stopped:
        _signal(pids[rank], ASK)  # waits for SIGCONT
    running = pids.keys() - stopped
    for ranks, number in ((running, ASK), (stopped, signal.SIGCONT)):
        for rank in ranks:
            _signal(pids[rank], number)
        for rank in _silent(ranks, logs, before):
            _signal(pids[rank], INSIST)
        _silent(ranks, logs, before)
        for rank in ranks if stopped else ():
            _signal(pids[rank], signal.SIGKILL)
    return {rank: Stack(frames=_frames(logs[rank], before[rank]), stopped=rank in stopped) for rank in pids}


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped the process; False off Linux."""
    return process_state(pid) in ("T", "t")


def suspects(stacks: Mapping[int, Stack]) -> tuple[int, ...]:
    """The ranks for which the others wait: those stopped, or else those not in a collective while others are."""
    stopped = tuple(rank for rank in sorted(stacks) if stacks[rank].stopped)
    absent = tuple(rank for rank in sorted(stacks) if not stacks[rank].waits)
    return stopped or (absent if len(absent) < len(stacks) else ())


def places(stacks: Mapping[int, Stack]) -> dict[str, list[int]]:
    """The collective calls that ranks wait in -> these ranks."""
    found: dict[str, list[int]] = {}
    for rank in sorted(stacks):
        if stacks[rank].waits:
            found.setdefault(waiting_call(stacks[rank].frames), []).append(rank)
    return found


def render(stacks: Mapping[int, Stack]) -> str:
    """All stacks as text for people: ranks that are in the same place share one."""
    groups: dict[Stack, list[int]] = {}
    for rank in sorted(stacks):
        groups.setdefault(stacks[rank], []).append(rank)
    return "\n".join(_paragraph(ranks, stack) for stack, ranks in groups.items())


def name_ranks(ranks: Iterable[int]) -> str:
    """The ranks in words: "rank 3", or "ranks 0, 2"."""
    ranks = tuple(ranks)
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(map(str, ranks))}"


def size_of(path: Path) -> int:
    """Bytes in a file, 0 when there is none."""
    return path.stat().st_size if path.exists() else 0


def _paragraph(ranks: list[int], stack: Stack) -> str:
    state = " (stopped by a signal)" if stack.stopped else ""
    frames = "\n".join(stack.frames) or "  no stack was written"
    return f"{name_ranks(ranks)}{state}, innermost call first:\n{frames}\n"


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _silent(ranks: Iterable[int], logs: Mapping[int, Path], before: Mapping[int, int]) -> set[int]:
    """Ranks whose log does not get a complete stack of the main thread within _PATIENCE; it is written line by line."""
    silent, end = set(ranks), time.monotonic() + _PATIENCE
    while silent and time.monotonic() < end:
        silent = {rank for rank in silent if not _WHOLE.search(_read(logs[rank], before[rank]))}
        time.sleep(0.02 if silent else 0.0)
    return silent


def _read(log: Path, start: int) -> str:
    """The text of the log after `start` bytes."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def _frames(log: Path, start: int) -> tuple[str, ...]:
    """The main thread's frames (which is written last), without the launcher's own."""
    threads = frames_by_thread(_read(log, start))
    frames = next(reversed(threads.values()), ())
    ends = [i for i, line in enumerate(frames) if _LAUNCHER.search(line)]
    return frames[: ends[0]] if ends else frames


def frames_by_thread(text: str) -> dict[int, tuple[str, ...]]:
    """The stacks in a log's text, by thread, the innermost call first; of several of a thread, the last."""
    frames: list[str] = []
    found = {0: frames}  # 0: where the text names no thread, because there is only one
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            ident = int(thread["ident"], 16)
            found.pop(ident, None)  # so that threads are in the order of their last stacks
            frames = found[ident] = []
        elif _FRAME.match(line):
            frames.append(line)
    return {ident: tuple(lines) for ident, lines in found.items()}
