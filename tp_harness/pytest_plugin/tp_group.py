"""A job of N ranks on a test's cores: torchrun or `tp-harness verify`, in a process family of its own.

One world size per process, as the Neuron runtime needs. However the job or the test ends, also by SIGKILL of the
worker, the whole family ends, and until then it keeps the locks of its cores (job_supervisor.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any

from ..errors import UsageError
from ..results.status import Status
from ..system.environment import Changes, changed
from .core_block import CoreBlock
from .report_properties import Properties

_OF_CORES = {"NEURON_RT_VISIBLE_CORES", "NEURON_RT_ROOT_COMM_ID"}
_TORCHRUN_GIVES_UP = " failed (exitcode: "
_RANK = re.compile(r"^\[rank\d+\]: ?")  # before each line of a traceback, by torch
LINES = 30  # of a failed job's output that its error shows
_VERDICT = ("component", "tp", "backend", "dtype", "layer", "draws", "seed", "status", "reason", "gate", "log_dir",
            "proof")  # fmt: skip


class RankError(AssertionError):
    """A job ended with a code other than 0, or a verdict failed; the message holds the end of its output.

    `status` is the word of result.Status for it.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class RankTimeoutError(RankError):
    """A job did not end in time; every process of it was ended."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that ended with 0: its output (stdout and stderr, as they came), where that is kept, and the seconds."""

    output: str
    log: Path
    seconds: float


class TpGroup:
    """As many ranks as there are cores in `cores`; leaving its `with` block ends what still runs."""

    def __init__(self, block: CoreBlock, *, fds: tuple[int, ...], folder: Path, title: str, report: Properties) -> None:
        self.cores = block
        self._fds, self._folder, self._title, self._report = fds, folder, title, report
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def degree(self) -> int:
        """The tp_degree, which is the number of ranks and of cores."""
        return self.cores.count

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of a job: this process's own as it is now, and that of its cores."""
        return self.cores.env

    def run(self, script: str | Path, *arguments: str, timeout: float = 600.0, env: Changes | None = None) -> Finished:
        """Run a Python script on `degree` ranks under torchrun, which they meet and talk through on loopback.

        Not covered: while it runs, torchrun's rendezvous listens on every interface, as it always does.

        Args:
            script: the script's path.
            arguments: its arguments.
            timeout: seconds.
            env: variables that the ranks shall have besides this process's own; None as a value takes one out.

        Raises:
            UsageError: env holds what is no variable, or one that says which cores the job has.
            RankError: torchrun ended with another code than 0.
            RankTimeoutError: it did not end in time.
        """
        __tracebackhide__ = True
        rendezvous = ("--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1")
        launcher = ("-m", "torch.distributed.run", f"--nproc-per-node={self.degree}", *rendezvous)
        code, finished = self._start("torchrun", (*launcher, str(script), *arguments), self._new_folder(), timeout, env)
        if code:
            raise self._failure("CRASH", "torchrun", f"ended with code {code}", finished)
        return finished

    def verify(self, *options: str, timeout: float = 600.0, env: Changes | None = None) -> list[dict[str, Any]]:
        """Run `tp-harness verify` at this degree, and have its verdicts in the summary and run.json of the tests.

        Args:
            options: of `verify`, such as "--component", "mlp"; --tp and --out are given.
            timeout: seconds.
            env: variables that the command and its ranks shall have besides this process's own; None as a value takes
                one out.

        Returns:
            The results as run.json holds them.

        Raises:
            UsageError: env holds what is no variable, or one that says which cores the job has.
            RankError: some verdict failed, or the command refused its options; says which and why.
            RankTimeoutError: it did not end in time.
        """
        __tracebackhide__ = True
        folder = self._new_folder()
        command = ("-m", "tp_harness", "verify", "--tp", str(self.degree), "--out", str(folder), *options)
        code, finished = self._start("tp-harness verify", command, folder, timeout, env)
        results = [result for path in folder.glob("*/run.json") for result in json.loads(path.read_text())["results"]]
        for result in results:
            self._report.verdict({name: result[name] for name in _VERDICT if name in result})
        bad = [result for result in results if Status(result["status"]).failed]
        if code or bad:
            status = next((result["status"] for result in bad), "CRASH")
            said = (f"{r['component']} {r['dtype']} {r['status']}: {r['reason']}" for r in bad)
            what = "; ".join(said) or _refusal(finished.output) or f"ended with code {code}"
            raise self._failure(status, "tp-harness verify", what, finished)
        return results

    def __enter__(self) -> TpGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _new_folder(self) -> Path:
        name = re.sub(r"[^\w.-]+", "-", self._title).strip("-")[-80:]
        digest = hashlib.sha256(self._title.encode()).hexdigest()[:6]
        logs = self._folder / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            return Path(mkdtemp(prefix=f"{name}-{digest}-", dir=logs))
        except OSError as error:
            text = f"cannot make a folder in {logs}: {error.strerror}; choose another with --tp-out."
            raise RankError("CRASH", text) from None

    def _start(
        self, name: str, arguments: tuple[str, ...], folder: Path, timeout: float, changes: Changes | None
    ) -> tuple[int, Finished]:
        __tracebackhide__ = True
        env = self._environment(changes)
        log, begin = folder / "output.log", time.monotonic()
        keeper = [sys.executable, "-m", "tp_harness.pytest_plugin.job_supervisor", sys.executable, *arguments]
        with log.open("wb") as output:
            self._running = subprocess.Popen(
                keeper,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                pass_fds=self._fds,
                start_new_session=True,
            )
        try:
            code = self._running.wait(timeout)
        except subprocess.TimeoutExpired:
            raise RankTimeoutError(
                "TIMEOUT",
                f"{name} at tp {self.degree} did not end within {timeout:g} s, so every process of it was ended; "
                f"its output: {log}",
            ) from None
        finally:
            self._end()
        seconds = time.monotonic() - begin
        return code, Finished(output=log.read_text(errors="replace"), log=log, seconds=seconds)

    def _environment(self, changes: Changes | None) -> dict[str, str]:
        for name in _OF_CORES & set(changes or ()):
            raise UsageError(f"env has {name}, which the cores of this test decide ({self.cores}); leave it out.")
        own = {"GLOO_SOCKET_IFNAME": "lo", **self.env} if sys.platform == "linux" else self.env
        return changed(own, changes)

    def _failure(self, status: str, name: str, what: str, finished: Finished) -> RankError:
        text = f"{name} at tp {self.degree}: {what}; its output: {finished.log}\n" + _last_words(finished.output)
        return RankError(status, text)

    def _end(self) -> None:
        """End the job: its supervisor ends the family once its standard input ends."""
        running, self._running = self._running, None
        if running is not None and running.stdin is not None:
            with suppress(OSError):
                running.stdin.close()
            running.wait()


def _last_words(output: str) -> str:
    """The end of what the ranks said: torchrun's own traceback, which comes after it, only distracts.

    Where not all of it is shown, a line that several ranks said is shown once, so that what one alone said is seen.
    """
    lines = output.splitlines()
    end = next((i for i, line in enumerate(lines) if _TORCHRUN_GIVES_UP in line), len(lines))
    lines = lines[: end + 1]
    if len(lines) > LINES:
        said: dict[str, list[str]] = {}
        for line in filter(str.strip, lines):
            said.setdefault(_RANK.sub("", line), []).append(line)
        lines = [same[0] if len(same) == 1 else f"{text}  ({len(same)} times)" for text, same in said.items()][-LINES:]
    return "\n".join(lines)


def _refusal(output: str) -> str:
    """What `tp-harness` itself said last, such as why it refused its options."""
    said = [line.removeprefix("tp-harness: ") for line in output.splitlines() if line.startswith("tp-harness: ")]
    return said[-1] if said else ""
