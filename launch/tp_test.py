"""Verify at the degree torchrun was started with.

    torchrun --nproc-per-node 8 launch/tp_test.py --component attention
    torchrun --nnodes 2 --nproc-per-node 8 ... launch/tp_test.py    # on each of two hosts

takes the options of `tp-harness verify` except --tp and --backend: the degree is --nproc-per-node, because a
tensor-parallel group stays within a host. Several hosts share the targets out; host 0's run.json holds all results.
Every rank exits with the same code (0 passed, 1 mismatch, 2 usage, 3 crash, 4 void). torchrun itself exits with 1
whenever a rank's code is not 0 and shows that code in its failure table; run.json holds it too.
"""

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from rich.console import Console
from tp_harness.launch.usher import end_parent_soon

from tp_harness.backends.torchrun import TorchrunBackend, follow, tell
from tp_harness.commands.verify import add_verify_options, options_of, run_verify
from tp_harness.errors import UsageError, printable
from tp_harness.hosts import Collector, Host, Publisher, Store
from tp_harness.interrupt import request_interrupt
from tp_harness.options import Resolved, as_record, resolve
from tp_harness.record import RunRecord, command_line, open_record
from tp_harness.result import Result, Status
from tp_harness.resume import inputs_of
from tp_harness.todo import Todo

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
_LEAD_SECONDS = 60.0  # for rank 0 to say what is wrong, before others may


def main() -> int:
    """Be one rank; returns the exit code."""
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        _say(f"{', '.join(missing)} not set; start it as `torchrun --nproc-per-node N launch/tp_test.py`.")
        return 2
    leads = os.environ["LOCAL_RANK"] == "0"
    try:
        options = resolve(options_of(_arguments()))
        host = Host.of(os.environ)
    except UsageError as error:
        if os.environ["RANK"] != "0":
            time.sleep(_LEAD_SECONDS)  # torchrun ends all ranks when the first has left
        _say(str(error))
        return 2
    # torchrun ends all ranks when one has failed; a leader then still has to write down what was found.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, TorchrunBackend.note_signal if leads else signal.SIG_DFL)
    store = _join(host, options.timeout)
    return _lead(options, host, store) if leads else follow()


def _join(host: Host, timeout: float) -> Store:
    """Join this host's group, on loopback unless GLOO_SOCKET_IFNAME says otherwise; returns torchrun's store."""
    limit = timedelta(seconds=timeout)
    store, _, _ = next(dist.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    rank = int(os.environ["LOCAL_RANK"])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(host.ranks)}  # as a user's module shall see it
    own = dist.PrefixStore(f"host{host.index}", store)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=own, rank=rank, world_size=host.ranks, timeout=limit)
    TorchrunBackend.orders = dist.new_group(timeout=timedelta(days=365))
    connection: Store = store.clone()  # that threads may use beside the group's
    return connection


def _lead(options: Resolved, host: Host, store: Store) -> int:
    """A host's first rank: the whole flow; whatever happens, the others learn how to exit."""
    code = 3
    try:
        code = _verify(options, host, store)
    except UsageError as error:
        _say(str(error))
        code = 2
    except KeyboardInterrupt as interrupt:
        _say(f"{str(interrupt) or 'interrupted'}.")
    finally:
        with suppress(RuntimeError):  # ranks that are gone need no code
            tell({"exit": code})
    return code


def _verify(options: Resolved, host: Host, store: Store) -> int:
    backend, console = TorchrunBackend(), Console()
    if host.count == 1:
        return run_verify(options, backend, console)
    own = replace(options, targets=host.share(options.targets))
    record = open_record(
        Path(options.out),
        command=command_line(),
        options=as_record(options if host.index == 0 else own),
        backend=backend.name,
        blind_spots=backend.blind_spots,
        inputs=inputs_of(options),
    )
    if host.index == 0:
        record.awaited = True
        collector = Collector(host, store, record, options.timeout)
        return run_verify(own, backend, console, record, lambda record: _complete(options, host, collector, record))
    publisher = Publisher(host, store, record, options.timeout)
    publisher.start()
    gone = f"host 0 does not answer any more; what host {host.index} found is in {record.path}"
    resume = f"`tp-harness verify --resume {record.folder}` goes on with it"
    publisher.when_lost(lambda: request_interrupt(f"{gone}, and {resume}"))
    try:
        code = run_verify(own, backend, console, record) if own.targets else 0
        if publisher.finish():
            return code
        _say(f"{gone}.")
        return 3
    finally:
        if publisher.lost:
            end_parent_soon()


def _complete(options: Resolved, host: Host, collector: Collector, record: RunRecord) -> None:
    """Add what the other hosts found; what a lost one did not tell is MISSING."""
    for lost in collector.collect():
        reason = f"host {lost} is not heard of any more; what it found is in its own run.json, torchrun may say why"
        _say(f"{reason}.")
        todo = Todo(options=options, record=record)
        for target in replace(host, index=lost).share(options.targets):
            for dtype in todo.dtypes(target, host.ranks):
                record.add(_missing(options, record, target, dtype, reason))
    record.awaited = False
    record.save()


def _missing(options: Resolved, record: RunRecord, target: tuple[str, int], dtype: str, reason: str) -> Result:
    return Result(
        component=target[0],
        tp=options.degrees[0],
        backend=record.backend,
        dtype=dtype,
        layer=target[1],
        draws=options.draws,
        seed=options.seed,
        status=Status.MISSING,
        reason=reason,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tp_test", description=__doc__)
    add_verify_options(parser)
    arguments = parser.parse_args()
    if arguments.tp is not None:
        raise UsageError(f"--tp is {arguments.tp}; under torchrun the degree is --nproc-per-node.")
    if arguments.resume is not None:
        raise UsageError("--resume needs no torchrun: `tp-harness verify --resume DIR` goes on with such a run too.")
    arguments.tp = os.environ["LOCAL_WORLD_SIZE"]
    return arguments


def _say(text: str) -> None:
    print(f"tp_test: {printable(text)}", file=sys.stderr, flush=True)


def script() -> NoReturn:
    """Leave without tearing the group down: ranks that are gone would be waited for."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    script()
