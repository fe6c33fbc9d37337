"""Faults put into the launcher: every kind at every moment of a run, at tp 2, 8 and 32, and what became of it.

    python tests/bench/launcher_faults.py --write docs/launcher-faults.md    # about 250 runs, half an hour
    python tests/bench/launcher_faults.py SIGKILL:collective:8               # one of them

Each run verifies three components at tp 1 and then at the degree; the fault strikes the last rank, or the main
process, in the second component at the degree. A fault at start or rendezvous strikes at both of the two starts that
the launcher tries. Every run is a fork of this process, which has imported everything, and so are its ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
import torch.distributed as dist
from tp_harness.launch import agent
from tp_harness.launch import rank as launch_rank

from tp_harness import api, cli, gather, material, resume, run, table
from tp_harness import rank as rank_module
from tp_harness.modules.mlp import NeuronGPTOSSMLPBlock
from tp_harness.workfolder import lock_folder

LOADED = (agent, api, resume, table)  # here, so that no fork has to, and so that files may be edited meanwhile
MARK = "TP_HARNESS_FAULT"
COMPONENTS = ("rmsnorm", "mlp", "unembedding")
MOMENTS = ("start", "rendezvous", "forward", "collective", "gather", "write")
DEGREES = (2, 8, 32)
TIMEOUT = 12.0  # seconds, of a case on the ranks, where the fault is a hang; those that start have 10 s, twice
GRACE = 10.0  # seconds beyond the timeout in which everything must be over
LIMIT = 180.0  # seconds after which a run is given up and killed


@dataclass(frozen=True)
class Fault:
    """What strikes, when, at which degree."""

    kind: str
    moment: str
    tp: int

    @property
    def victim(self) -> int:
        """The rank that it strikes."""
        return self.tp - 1

    @property
    def hangs(self) -> bool:
        """It ends nothing by itself; only the timeout does."""
        return self.kind in ("SIGSTOP", "sleep")

    @property
    def strikes_main(self) -> bool:
        """It is the main process, and not a rank, that it strikes."""
        return self.kind in MAIN_KINDS

    @property
    def persists(self) -> bool:
        """It strikes at every start of the ranks; one that does not is healed by the second start."""
        return self.moment in ("start", "rendezvous") and not self.strikes_main


@dataclass
class Seen:
    """What a run came to. `seconds` is from the fault to the end of the last process."""

    code: int
    struck: bool
    seconds: float
    results: list[dict[str, Any]]
    errors: str
    left: list[str] = field(default_factory=list)

    def kept(self) -> int:
        """Results that say PASS."""
        return sum(result["status"] == "PASS" for result in self.results)


def exhaust() -> None:
    """Ask for more memory than this process may have."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), taken + (64 << 20)))
    torch.ones(1 << 30)


def fail(error: BaseException) -> NoReturn:
    """Raise it."""
    raise error


def kill(number: signal.Signals) -> Callable[[], object]:
    """Send oneself a signal."""
    return lambda: os.kill(os.getpid(), number)


RANK_KINDS: dict[str, Callable[[], object]] = {
    "raise": lambda: fail(ArithmeticError("no more numbers")),
    "MemoryError": lambda: fail(MemoryError()),
    "allocation": exhaust,
    "sys.exit(5)": lambda: sys.exit(5),
    "os._exit(0)": lambda: os._exit(0),
    "SIGTERM": kill(signal.SIGTERM),
    "SIGSEGV": kill(signal.SIGSEGV),
    "SIGKILL": kill(signal.SIGKILL),
    "SIGSTOP": kill(signal.SIGSTOP),
    "sleep": lambda: time.sleep(3600),
}
MAIN_KINDS: dict[str, tuple[signal.Signals, ...]] = {
    "main: SIGINT twice": (signal.SIGINT, signal.SIGINT),
    "main: SIGTERM": (signal.SIGTERM,),
    "main: SIGKILL": (signal.SIGKILL,),
}
WRITE_KINDS = ("disk full", "folder gone")  # of the main process, while it writes run.json
ALL = [
    *(Fault(k, m, tp) for k in (*RANK_KINDS, *MAIN_KINDS) for m in MOMENTS for tp in DEGREES),
    *(Fault(k, "write", tp) for k in WRITE_KINDS for tp in DEGREES),
]


class Injection:
    """Hooks in the code of the run, set in the main process before it forks anything."""

    def __init__(self, fault: Fault, home: Path) -> None:
        self.fault, self.home, self.main = fault, home, os.getpid()
        self.armed = False  # in a rank: the fault has yet to strike in this start

    def install(self) -> None:
        """Set the hooks that the fault's moment needs."""
        self.at_start()
        hooks = {"gather": self.at_gather, "write": self.at_write}
        if self.fault.moment in hooks:
            hooks[self.fault.moment]()
        NeuronGPTOSSMLPBlock.forward = self.around(NeuronGPTOSSMLPBlock.forward)  # type: ignore[method-assign]

    def strike(self) -> None:
        """The fault itself, in the process that it strikes or, for a signal to the main process, in the victim."""
        struck = self.home / "struck"
        if struck.exists() and not self.fault.persists:
            return
        if not struck.exists():
            (self.home / "struck.part").write_text(repr(time.time()))
            (self.home / "struck.part").rename(struck)
        if self.fault.strikes_main:
            for number in MAIN_KINDS[self.fault.kind]:
                os.kill(self.main, number)
                time.sleep(0.05)
            if os.getpid() != self.main:
                time.sleep(1)  # until its death is ours
        else:
            RANK_KINDS[self.fault.kind]()

    def is_victim(self, rank: int, size: int) -> bool:
        """This rank is struck."""
        return (rank, size) == (self.fault.victim, self.fault.tp)

    def at_start(self) -> None:
        """Before the victim joins the group, or when it has and the others may not have."""
        join = launch_rank._join_group

        def joined(task: launch_rank.RankTask, rank: int) -> None:
            self.armed = not (self.home / "struck").exists()  # the same in all: none has begun
            if self.fault.moment == "start" and self.is_victim(rank, task.size):
                self.strike()
            join(task, rank)
            if self.fault.moment == "rendezvous" and self.is_victim(rank, task.size):
                self.strike()

        launch_rank._join_group = joined

    def around(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The MLP's forward with the fault in it: before all, or in a collective that has begun and cannot end."""

        def faulty(module: Any, x: torch.Tensor) -> torch.Tensor:
            rank, size = module.group.rank, module.group.size
            moment = self.fault.moment
            if moment == "write" and not self.strikes_itself() and self.is_victim(rank, size):
                self.await_file("writing")
            if moment in ("forward", "write") and not self.strikes_itself() and self.is_victim(rank, size):
                self.strike()
            if moment == "collective" and size == self.fault.tp and self.armed:
                if rank == 0:
                    time.sleep(0.3)  # the others wait inside
                work = dist.all_reduce(torch.ones(64), async_op=True)
                if self.is_victim(rank, size):
                    self.strike()
                work.wait()
            return forward(module, x)

        return faulty

    def strikes_itself(self) -> bool:
        """It happens in the main process, by itself."""
        return self.fault.moment == "write" and (self.fault.strikes_main or self.fault.kind in WRITE_KINDS)

    def at_gather(self) -> None:
        """While the victim hands its outputs over, or while the main process reads those of all."""
        if self.fault.strikes_main:
            read = gather.read_outputs

            def reading(job: Any, task: Any) -> Any:
                if (task.component, job.tp) == ("mlp", self.fault.tp):
                    self.strike()
                return read(job, task)

            run.read_outputs = reading  # type: ignore[attr-defined]
            return
        write = rank_module._write

        def writing(path: Path, tensors: Any, facts: Any) -> None:
            if path.name.startswith("mlp.") and self.is_victim(facts["rank"], _degree(path)):
                path.with_suffix(".part").write_bytes(b"half")
                self.strike()
            write(path, tensors, facts)

        rank_module._write = writing

    def at_write(self) -> None:
        """While the main process writes the first result of the degree into run.json."""
        replace = Path.replace

        def replacing(path: Path, target: Path) -> Path:
            at_degree = path.name == "run.json.part" and f'"tp": {self.fault.tp}' in path.read_text()
            if at_degree and not (self.home / "writing").exists():
                (self.home / "writing").touch()
                if self.strikes_itself():
                    self.strike_write(path)
                else:
                    self.await_file("struck")
            return replace(path, target)

        Path.replace = replacing  # type: ignore[method-assign, assignment]

    def strike_write(self, path: Path) -> None:
        """The main process cannot write, or is struck while it does."""
        if self.fault.strikes_main:
            self.strike()
            return
        (self.home / "struck").write_text(repr(time.time()))
        if self.fault.kind == "disk full":
            raise OSError(28, os.strerror(28), str(path))
        path.parent.rename(path.parent.with_name("moved"))

    def await_file(self, name: str) -> None:
        """Until another process has made it."""
        end = time.monotonic() + 30
        while not (self.home / name).exists() and time.monotonic() < end:
            time.sleep(0.005)


def _degree(path: Path) -> int:
    return next(int(part[2:]) for part in path.name.split(".") if part[:2] == "tp" and part[2:].isdigit())


def observe(fault: Fault) -> Seen:
    """Run with the fault, and look at what is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir=os.environ.get("TMPDIR")) as name:
        home = Path(name)
        for folder in ("shm", "tmp", "out"):
            (home / folder).mkdir()
        child = os.fork()
        if not child:
            _be_main(fault, home)
        code = _wait(child)
        end = time.monotonic() + GRACE
        # Who is killed, or whose folder was moved away, cannot remove the half-written file in it.
        killed = code == -signal.SIGKILL or fault.kind == "folder gone"
        while (_processes() or _files_left(home, killed)) and time.monotonic() < end:
            time.sleep(0.02)
        over = time.time()
        left = [f"process {process.pid} {process.name()}" for process in _processes()]
        for process in _processes():
            process.kill()
        struck = home / "struck"
        return Seen(
            code=code,
            struck=struck.exists(),
            seconds=over - float(struck.read_text()) if struck.exists() else float("nan"),
            results=_results(home),
            errors=(home / "errors").read_text(),
            left=left + _files_left(home, killed),
        )


def _be_main(fault: Fault, home: Path) -> NoReturn:
    os.setsid()
    output = os.open(home / "output", os.O_WRONLY | os.O_CREAT)
    errors = os.open(home / "errors", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ["TMPDIR"] = tempfile.tempdir = str(home / "tmp")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    material.SHM = home / "shm"
    Injection(fault, home).install()
    options = [word for component in COMPONENTS for word in ("--component", component)]
    options += ["--tp", f"1,{fault.tp}", "--draws", "1", "--dtype", "float32", "--out", str(home / "out")]
    options += ["--no-fault-control"]  # which would run the second component first, and be struck
    options += ["--timeout", str(TIMEOUT if fault.hangs else 120)]
    try:
        code = cli.main(["verify", *options])
    except BaseException as error:
        print(f"uncaught: {error!r}", file=sys.stderr)
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int) -> int:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -99


def _processes() -> list[psutil.Process]:
    """Every process that descends from this one, in whatever session, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marked = process.environ().get(MARK) == os.environ[MARK] and process.pid != os.getpid()
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _files_left(home: Path, killed: bool) -> list[str]:
    """In the temporary places all, of the run's folder a half-written file and the lock; SIGKILL excuses the former."""
    left = [str(path.relative_to(home)) for folder in ("shm", "tmp") for path in (home / folder).iterdir()]
    for folder in (home / "out").iterdir():
        lock = lock_folder(folder)
        left += [f"lock of {folder.name}"] if lock is None else []
        if lock is not None:
            os.close(lock)
        left += [path.name for path in folder.iterdir() if path.suffix == ".part" and not killed]
    return left


def _results(home: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text())["results"] for path in (home / "out").glob("*/run.json")]
    return max(found, key=len, default=[])


def complaints(fault: Fault, seen: Seen) -> list[str]:
    """What is not as promised; empty if all is."""
    found = [f"left behind: {', '.join(seen.left)}"] if seen.left else []
    if not seen.struck:
        return [*found, f"the fault did not strike (exit code {seen.code}, {seen.errors[-300:]!r})"]
    allowed = (2 * 10.0 if fault.persists and fault.hangs else TIMEOUT) + GRACE
    if seen.seconds > allowed:
        found.append(f"{seen.seconds:.1f} s, more than {allowed:.0f}")
    expected, least = _promise(fault)
    if seen.code != expected:
        found.append(f"exit code {seen.code} instead of {expected}: {seen.errors[-300:]!r}")
    if seen.kept() < least:
        found.append(f"{seen.kept()} results kept, at least {least} promised")
    if not _is_named(fault, seen):
        found.append(
            f"not named: {[r['reason'] for r in seen.results if r['status'] != 'PASS']} {seen.errors[-300:]!r}"
        )
    return found


def _promise(fault: Fault) -> tuple[int, int]:
    """Exit code, and how many PASS at least: all that the fault could not prevent."""
    if fault.kind in WRITE_KINDS:
        return 2, len(COMPONENTS)
    if fault.strikes_main:
        return (-signal.SIGKILL if fault.kind == "main: SIGKILL" else 130), len(COMPONENTS)
    return 3, len(COMPONENTS) if fault.persists else 2 * len(COMPONENTS) - 1


def _is_named(fault: Fault, seen: Seen) -> bool:
    """A failed result names the rank, or a sentence says what ended the run."""
    if fault.kind == "main: SIGKILL":
        return True
    if fault.strikes_main or fault.kind in WRITE_KINDS:
        words = {"main: SIGTERM": "SIGTERM", "disk full": "No space left", "folder gone": "No such file"}
        return words.get(fault.kind, "interrupted") in seen.errors and "Traceback" not in seen.errors
    bad = [r for r in seen.results if r["status"] != "PASS"]
    status = "TIMEOUT" if fault.hangs and not fault.persists else "CRASH"
    named = all(f"rank {fault.victim}" in r["reason"] or f" {fault.victim};" in r["reason"] for r in bad)
    stacks = not fault.hangs or fault.persists or all("innermost call first" in r["traceback"] for r in bad)
    return bool(bad) and {r["status"] for r in bad} == {status} and named and stacks


def page(seen: dict[Fault, Seen]) -> str:
    """The table as Markdown, one row per kind and moment, one column per degree."""
    wrong = {fault: complaints(fault, one) for fault, one in seen.items()}
    right = sum(not found for found in wrong.values())
    littered = sum(bool(one.left) for one in seen.values())
    ended = [(one.seconds, fault) for fault, one in seen.items() if not fault.hangs and one.struck]
    slowest = max(ended, key=lambda pair: pair[0], default=None)
    lines = [
        "# Faults in the launcher",
        "",
        "Made by `python tests/bench/launcher_faults.py --write docs/launcher-faults.md`, which explains the moments.",
        "",
        f"{len(seen)} of {len(ALL)} faults were put in, {right} ended as promised, {littered} left anything behind "
        "(processes and with them ports, files in shared memory and in TMPDIR, locks).",
    ]
    if slowest:
        seconds, fault = slowest
        lines.append(f"Slowest that is no hang: {seconds:.1f} s ({fault.kind} at {fault.moment}, tp {fault.tp}).")
    lines += [
        f"A hang is found by its timeout: {TIMEOUT:.0f} s for a case, twice 10 s for a start.",
        "",
        "A cell: exit code, seconds from the fault to the end of the last process (other work ran on the machine),",
        "and the results kept that say PASS: 3 at tp 1 and, where ranks can be started afresh, 2 at the degree.",
        "",
        "| fault | moment | " + " | ".join(f"tp {tp}" for tp in DEGREES) + " |",
        "|---|---|" + "---|" * len(DEGREES),
    ]
    for kind, moment in dict.fromkeys((f.kind, f.moment) for f in (*ALL, *seen) if f in seen):
        cells = [_cell(Fault(kind, moment, tp), seen, wrong) for tp in DEGREES]
        lines.append(f"| {kind} | {moment} | {' | '.join(cells)} |")
    lines += ["", *(f"- {f.kind} at {f.moment}, tp {f.tp}: {'; '.join(w)}" for f, w in wrong.items() if w)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(fault: Fault, seen: dict[Fault, Seen], wrong: dict[Fault, list[str]]) -> str:
    if fault not in seen:
        return "not run"
    one = seen[fault]
    note = " **wrong**" if wrong[fault] else ""
    return f"{one.code}, {one.seconds:.1f} s, {one.kept()} kept{note}"


def _read(path: Path | None) -> dict[Fault, Seen]:
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Fault(**fault): Seen(**seen) for fault, seen in lines}


def _chosen(words: list[str]) -> Iterator[Fault]:
    for word in words:
        kind, moment, tp = word.rsplit(":", 2)
        yield Fault(kind, moment, int(tp))


def main() -> int:
    """Run what is asked for; 1 if anything is not as promised."""
    if MARK not in os.environ:  # in this process's own environment, by which its descendants are found
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {MARK: uuid.uuid4().hex})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="KIND:MOMENT:TP", help="default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table as Markdown")
    parser.add_argument("--seen", type=Path, metavar="FILE", help="results of other calls, joined in the table; grows")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    seen = _read(arguments.seen)
    wrong = 0
    for fault in list(_chosen(arguments.faults)) or ALL:
        seen[fault] = observe(fault)
        found = complaints(fault, seen[fault])
        wrong += bool(found)
        print(
            f"{fault.kind:18} {fault.moment:10} tp {fault.tp:2}: {_cell(fault, seen, {fault: found})}",
            *found,
            flush=True,
        )
        if arguments.seen:
            with arguments.seen.open("a") as file:
                print(json.dumps([asdict(fault), asdict(seen[fault])]), file=file)
        if arguments.write:
            seen = _read(arguments.seen) | seen  # of a call that goes on beside this one
            arguments.write.parent.mkdir(exist_ok=True)
            arguments.write.write_text(page(seen))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
