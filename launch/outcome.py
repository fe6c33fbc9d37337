"""How a run ended: facts collected about its ranks, and the one explanation that follows from them. No torch.

The root cause is the failure that came first, except that a lost connection is caused by another rank: one that failed
by itself, or that returned without a collective. A rank that raised says when it did. A rank that died silently
(by a signal or os._exit) counts as failed shortly before it was last seen alive: an exception of another rank
around that moment may be its consequence, while its death is hardly ever the consequence of an exception.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .process import signal_name
from .stacks import Stack, name_ranks, places, render, suspects
from .waits import is_loss, waiting_call

Kind = Literal["ok", "crash", "timeout", "start", "stopped"]
_DYING_NS = 500_000_000  # how long a process may still seem alive after its peers saw it vanish
Ending = Literal["ended", "timeout", "start timeout", "stopped"]


@dataclass(frozen=True, kw_only=True)
class LaunchOutcome:
    """How a run of ranks ended.

    Args:
        ok: all ranks returned from the entry function.
        kind: "ok", "crash" (a rank failed), "timeout" (ranks did not finish), "start" (ranks could not be
            started), or "stopped" (`RunningRanks.stop` was called).
        message: one sentence for people.
        size: number of ranks.
        failed_rank: the rank that failed first, if one did; after a timeout, the first that the others wait for.
        exit_code: exit status of that rank if it exited by itself.
        signal_name: name of the signal that ended that rank, for example "SIGKILL".
        error: its exception in one line, for example "ValueError: no".
        traceback: its traceback, from the entry function on; after a timeout, where each unfinished rank was.
        log_path: its log (standard output and error).
        unfinished_ranks: ranks that had not returned when the time was over.
        threads, thread: of a process that holds several ranks, each one's rank and identity, and the rank that raised.
        late: after a timeout, what did not finish in which time, as `message` begins.
        start_retries: how many times all processes had to be started anew, 0 or 1.
        start_seconds: from the request until all ranks were connected, retries included.
        seconds: from the request until everything had ended.
    """

    ok: bool
    kind: Kind
    message: str
    size: int
    failed_rank: int | None = None
    exit_code: int | None = None
    signal_name: str | None = None
    error: str | None = None
    thread: int | None = None
    traceback: str | None = None
    log_path: Path | None = None
    unfinished_ranks: tuple[int, ...] = ()
    threads: tuple[tuple[int, int], ...] = ()
    late: str = ""
    start_retries: int = 0
    start_seconds: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.ok != (self.kind == "ok"):
            raise ValueError(f"ok={self.ok} contradicts kind={self.kind!r}")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; `from_json` reads them back."""
        return asdict(self) | {"log_path": str(self.log_path) if self.log_path else None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LaunchOutcome":
        """The outcome that `to_json` described."""
        log_path = Path(data["log_path"]) if data["log_path"] else None
        ranks, threads = tuple(data["unfinished_ranks"]), tuple(map(tuple, data["threads"]))
        return cls(**{**data, "log_path": log_path, "unfinished_ranks": ranks, "threads": threads})


@dataclass(frozen=True, kw_only=True)
class Death:
    """End of a rank's process that the agent neither wanted nor caused.

    Args:
        alive_ns: last monotonic time, in nanoseconds, at which the process was seen alive.
        exit_code: exit status, negative signal number if a signal ended it.
    """

    alive_ns: int
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a rank wrote down about its own exception: monotonic time, last line, traceback, whose thread."""

    time_ns: int
    error: str
    traceback: str
    thread: int | None = None


@dataclass(kw_only=True)
class RunFacts:
    """Facts about one attempt to run the ranks.

    Args:
        ending: why the attempt is over.
        pids: process id of each rank that was started.
        connected: ranks that joined the process group.
        returned: ranks that returned from the entry function.
        steps, threads: what each rank has begun, in order, and those that are threads; see `rank`.
        stacks: where the unfinished ranks were when their time was over.
        deaths: see `Death`, by rank.
        reports: see `Report`, by rank.
        succeeded: the agent says that all ranks succeeded.
        agent_error: what went wrong in the agent itself.
    """

    size: int
    log_dir: Path
    timeout: float | None
    start_timeout: float
    ending: Ending = "ended"
    pids: dict[int, int] = field(default_factory=dict)
    connected: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)
    steps: dict[int, list[str]] = field(default_factory=dict)
    threads: list[tuple[int, int]] = field(default_factory=list)
    stacks: dict[int, Stack] = field(default_factory=dict)
    deaths: dict[int, Death] = field(default_factory=dict)
    reports: dict[int, Report] = field(default_factory=dict)
    succeeded: bool = False
    agent_error: str | None = None

    @property
    def started(self) -> bool:
        """Whether all ranks have joined the group; before that, the entry function runs in none."""
        return len(self.connected) == self.size

    @property
    def common_steps(self) -> int:
        """The number of steps that all ranks have begun."""
        return min(len(self.steps.get(rank, ())) for rank in range(self.size))

    def first_failure(self) -> int | None:
        """The rank that failed first, or None."""
        times = {rank: (False, death.alive_ns - _DYING_NS) for rank, death in self.deaths.items()}
        times |= {rank: (is_loss(report.error), report.time_ns) for rank, report in self.reports.items()}
        return min(times, key=lambda rank: (times[rank], rank), default=None)

    def left_early(self) -> tuple[int, ...]:
        """Ranks that returned while others waited for them, and lost the connection."""
        first = self.first_failure()
        lost = first is not None and first in self.reports and is_loss(self.reports[first].error)
        return tuple(sorted(self.returned)) if lost else ()


def outcome_of(record: RunFacts, *, retries: int, start_seconds: float, seconds: float) -> LaunchOutcome:
    """The outcome that follows from the facts; numbers as in `LaunchOutcome`, times in seconds."""
    common: dict[str, Any] = {
        "size": record.size,
        "threads": tuple(record.threads),
        "start_retries": retries,
        "start_seconds": start_seconds,
        "seconds": seconds,
    }
    if record.succeeded:
        return LaunchOutcome(ok=True, kind="ok", message=f"all {record.size} ranks finished", **common)
    if record.ending == "stopped":
        return LaunchOutcome(ok=False, kind="stopped", message="the ranks were stopped on request", **common)
    if record.ending == "timeout":
        return _timeout(record, common)
    culprit = record.first_failure()
    details = {} if culprit is None else _details(record, culprit)
    kind: Kind = "crash" if record.started else "start"
    message = _crash_message(record) if record.started else _start_message(record, retries)
    return LaunchOutcome(ok=False, kind=kind, message=message, **common, **details)


def _timeout(record: RunFacts, common: dict[str, Any]) -> LaunchOutcome:
    running = tuple(rank for rank in range(record.size) if rank not in record.returned)
    if not running:
        late = f"all {record.size} ranks returned, but a process did not end within {record.timeout:g} s"
        return LaunchOutcome(ok=False, kind="timeout", message=late, late=late, **common)
    were = "was" if len(running) == 1 else "were"
    awaited = suspects(record.stacks) or _odd_ones(record)
    late = f"the ranks did not finish{_step(record)} within {record.timeout:g} s"
    message = (
        f"{late}: {name_ranks(running)} of {record.size} {were} still running{_awaited(record, awaited)}; "
        f"their logs in {record.log_dir} say where"
    )
    return LaunchOutcome(
        ok=False,
        kind="timeout",
        message=message,
        failed_rank=awaited[0] if awaited else None,
        traceback=render(record.stacks) or None,
        log_path=rank_log(record.log_dir, awaited[0] if awaited else running[0]),
        unfinished_ranks=running,
        late=late,
        **common,
    )


def _step(record: RunFacts) -> str:
    """The step that was not finished: the last one that all had begun."""
    count = record.common_steps
    return f" {record.steps[0][count - 1]}" if count else ""


def _odd_ones(record: RunFacts) -> tuple[int, ...]:
    """Of ranks that all wait for others: those that have returned, or else those in another call than most."""
    if record.returned and all(stack.waits for stack in record.stacks.values()):
        return tuple(sorted(record.returned))
    groups = sorted(places(record.stacks).values(), key=len)
    return tuple(groups[0]) if len(groups) > 1 and len(groups[0]) < len(groups[1]) else ()


def _awaited(record: RunFacts, ranks: tuple[int, ...]) -> str:
    """Which ranks the others wait for, and in which calls."""
    found = places(record.stacks)
    calls = ", ".join(f"{name_ranks(waiting)} in {call}" for call, waiting in found.items())
    if ranks and ranks[0] in record.stacks and record.stacks[ranks[0]].stopped:
        return f", with {name_ranks(ranks)} stopped by a signal"
    if ranks and set(ranks) <= record.returned:
        return f", {calls}; {name_ranks(ranks)} had returned" if calls else ""
    if len(found) > 1:
        return f", not in the same call: {calls}"
    if not ranks:
        return f", all in {next(iter(found))}" if found else ""
    are = "is" if len(ranks) == 1 else "are"
    return f", and {name_ranks(ranks)} {are} not in the collective that the others wait in: {next(iter(found))}"


def _details(record: RunFacts, rank: int) -> dict[str, Any]:
    death, report = record.deaths.get(rank), record.reports.get(rank)
    if gone := record.left_early():  # the traceback is that of the rank that waited, and shows in which call
        assert report is not None
        log = rank_log(record.log_dir, gone[0])
        return {"failed_rank": gone[0], "traceback": report.traceback, "log_path": log}
    code = death.exit_code if death else None
    return {
        "failed_rank": rank,
        "exit_code": code if code is not None and code >= 0 else None,
        "signal_name": signal_name(-code) if code is not None and code < 0 else None,
        "error": report.error if report else None,
        "thread": report.thread if report else None,
        "traceback": report.traceback if report else None,
        "log_path": rank_log(record.log_dir, rank),
    }


def _start_message(record: RunFacts, retries: int) -> str:
    times = ", twice" if retries else ""
    if record.ending == "start timeout":
        missing = tuple(rank for rank in range(record.size) if rank not in record.connected)
        return (
            f"only {len(record.connected)} of {record.size} ranks were connected within "
            f"{record.start_timeout:g} s{times}; missing: {name_ranks(missing)}; logs: {record.log_dir}"
        )
    return f"the ranks could not be started{times}: {_crash_message(record)}"


def _crash_message(record: RunFacts) -> str:
    rank = record.first_failure()
    if rank is None:
        reason = record.agent_error or "it was killed"
        return f"the elastic agent of {record.size} ranks ended by itself: {reason}; logs: {record.log_dir}"
    death, report = record.deaths.get(rank), record.reports.get(rank)
    if record.left_early():
        return _left_message(record, rank)
    if report:
        verb = f"failed with {report.error}"
    elif death and death.exit_code < 0:
        verb = f"was killed by {signal_name(-death.exit_code)}"
    else:
        verb = f"left with exit code {death.exit_code if death else '?'} before it had returned"
    gone = f" ({name_ranks(tuple(sorted(record.returned)))} had returned before)" if record.returned else ""
    return f"rank {rank} of {record.size} {verb}{gone}; its log: {rank_log(record.log_dir, rank)}"


def _left_message(record: RunFacts, waited: int) -> str:
    """The message about ranks that returned while others, of which `waited` is one, waited for them."""
    gone = record.left_early()
    rest = tuple(rank for rank in range(record.size) if rank not in record.returned)
    call = waiting_call(reversed(record.reports[waited].traceback.splitlines())) or "a collective"
    wait = f"{name_ranks(rest)} wait{'s' if len(rest) == 1 else ''}"
    logs = f"{rank_log(record.log_dir, gone[0])} and {rank_log(record.log_dir, waited).name}"
    return f"{name_ranks(gone)} of {record.size} returned without {call}, in which {wait}; logs: {logs}"


def rank_log(log_dir: Path, rank: int) -> Path:
    """The file of a rank's standard output and error."""
    return log_dir / f"rank{rank}.log"


def report_path(attempt_dir: Path, rank: int) -> Path:
    """The file in which a rank that raised leaves its `Report` for the warden, as JSON."""
    return attempt_dir / f"failure{rank}.json"
