"""What launch/tp_test.py does once its environment is right: join the group, then lead or follow."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from tp_harness.backends.gloo import GlooBackend
from tp_harness.backends.neuron import NeuronBackend
from tp_harness.backends.torchrun import Member, TorchrunBackend
from tp_harness.config.dtypes import draws_in
from tp_harness.config.options import Resolved, as_record
from tp_harness.errors import UsageError
from tp_harness.launch.kill_torchrun import end_parent_soon
from tp_harness.launch.local_ranks import Siblings
from tp_harness.neuron.log_patterns import explained
from tp_harness.parallel.group import TorchGroup
from tp_harness.prepare.own_cases import with_cases_named
from tp_harness.results.remaining_work import Todo
from tp_harness.results.result import Result, Status
from tp_harness.results.resume import inputs_of
from tp_harness.results.run_record import RunRecord, command_line, open_record
from tp_harness.system.interrupts import request_interrupt
from tp_harness.verification.hosts import Collector, Host, Publisher, Store
from tp_harness.verification.summary import run_verify
from tp_harness.xla.processes import ProcessMeeting, join_cores

_EVER = timedelta(days=365)  # followers wait for the next order however long the leader judges


@dataclass(frozen=True)
class Flow:
    """One rank's part of the flow; `say` prints a sentence for people."""

    options: Resolved
    host: Host
    say: Callable[[str], None]

    def run(self, backend: str, unused: str) -> int:
        """Do this process's part on that backend; returns the exit code.

        Raises:
            UsageError: the ranks are not one world; the same on all of them.
        """
        leads = os.environ["LOCAL_RANK"] == "0"
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        store = _store(self.options.timeout)
        member = join(backend, self.host, store, self.options.timeout)
        try:
            return self.lead(self._led(backend, unused, member), store.clone()) if leads else self.follow(member)
        finally:
            member.siblings.kill_stopped()  # torchrun would wait for them half a minute

    def follow(self, member: Member) -> int:
        """Do what rank 0 orders, as every other rank; returns the exit code."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if member.group.rank == 1:  # all wait for rank 0's orders; one watches it
            member.siblings.when_stopped(0, self.options.timeout, lambda: self._end_without_leader(member))
        return member.follow()

    def _end_without_leader(self, member: Member) -> None:
        """Kill rank 0, which no other signal reaches, and leave."""
        self.say(f"rank 0 is stopped by a signal, for {self.options.timeout:g} s now; its run.json has what it found.")
        member.siblings.kill_stopped()
        os._exit(3)

    def _led(self, backend: str, unused: str, member: Member) -> TorchrunBackend:
        kind = NeuronBackend() if backend == "neuron" else GlooBackend(unused)
        led = TorchrunBackend(kind, member)
        # torchrun ends all ranks when one has failed; a leader then still has to write down what was found.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, led.note_signal)
        return led

    def lead(self, backend: TorchrunBackend, store: Store) -> int:
        """Do the whole flow, as a host's first rank; returns the exit code. In any case the others learn how to exit.

        `store` is torchrun's, by a connection that threads may use beside the group's.
        """
        code = 3
        try:
            code = self._verify(backend, store)
        except UsageError as error:
            self.say(str(error))
            code = 2
        except KeyboardInterrupt as interrupt:
            self.say(f"{str(interrupt) or 'interrupted'}.")
        finally:
            backend.member.siblings.kill_stopped()  # they would not take the exit code
            with suppress(RuntimeError):  # ranks that are gone need none
                backend.member.tell({"exit": code})
        return code

    def _verify(self, backend: TorchrunBackend, store: Store) -> int:
        host, console = self.host, Console()
        if host.count == 1:
            return run_verify(self.options, backend, console)
        options = with_cases_named(self.options)
        own = replace(options, targets=host.share(options.targets), case=host.share(options.case))
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
            return run_verify(own, backend, console, record, lambda record: self._complete(options, collector, record))
        publisher = Publisher(host, store, record, options.timeout)
        publisher.start()
        gone = f"host 0 does not answer any more; what host {host.index} found is in {record.path}"
        resume = f"`tp-harness verify --resume {record.folder}` goes on with it"
        publisher.when_lost(lambda: request_interrupt(f"{gone}, and {resume}"))
        try:
            code = run_verify(own, backend, console, record) if own.targets else 0
            if publisher.finish():
                return code
            self.say(f"{gone}.")
            return 3
        finally:
            if publisher.lost:
                end_parent_soon()

    def _complete(self, options: Resolved, collector: Collector, record: RunRecord) -> None:
        """Add what the other hosts found; what a lost one did not tell is MISSING."""
        host = self.host
        for lost in collector.collect():
            reason = f"host {lost} is not heard of any more; what it found is in its own run.json, torchrun may say why"
            self.say(f"{reason}.")
            todo = Todo(options=options, record=record)
            for target in replace(host, index=lost).share(options.targets):
                for dtype in todo.dtypes(target, host.ranks):
                    record.add(_missing(options, record, target, dtype, reason))
        record.awaited = False
        record.save()


def _store(timeout: float) -> dist.Store:  # type: ignore[name-defined]
    """torchrun's own."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))  # type: ignore[attr-defined]
    return store


def join(backend: str, host: Host, store: dist.Store, timeout: float) -> Member:  # type: ignore[name-defined]
    """Join this host's group, on loopback unless GLOO_SOCKET_IFNAME says otherwise.

    Raises:
        UsageError: for neuron, the processes are not one world of neighbouring cores; all of them raise it.
    """
    limit = timedelta(seconds=timeout)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    rank, size = int(os.environ["LOCAL_RANK"]), host.ranks
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}  # as a user's module shall see it
    own = dist.PrefixStore(f"host{host.index}", store)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=limit)
    siblings = Siblings(ProcessMeeting(None).exchange(rank, os.getpid()))
    if backend == "gloo":
        orders = dist.new_group(timeout=_EVER)
        return Member(group=TorchGroup(timeout=limit), core=f"cpu process {rank}", orders=orders, siblings=siblings)
    _check_cores(rank)
    try:
        cores = dist.PrefixStore("cores", own)  # type: ignore[attr-defined]
        group, device, beside = join_cores(rank, size, cores, limit)
    except RuntimeError as error:
        raise UsageError(f"{explained(error)}.") from error
    orders = dist.new_group(backend="gloo", timeout=_EVER)
    return Member(group=group, core=device.name, device=device, orders=orders, end=beside, siblings=siblings)


def _check_cores(rank: int) -> None:
    """Check, before any process opens a core, that all have chosen the same ones.

    Raises:
        UsageError: another job's cores became free or held while they chose.
    """
    chosen = ProcessMeeting(None).exchange(rank, os.environ["NEURON_RT_VISIBLE_CORES"])
    if len(set(chosen)) > 1:
        raise UsageError(
            f"the ranks chose different NeuronCores, {' and '.join(sorted(set(chosen)))}, because another job came or "
            "went meanwhile: start again, or say which with NEURON_RT_VISIBLE_CORES."
        )


def _missing(options: Resolved, record: RunRecord, target: tuple[str, int], dtype: str, reason: str) -> Result:
    return Result(
        component=target[0],
        tp=options.degrees[0],
        backend=record.backend,
        dtype=dtype,
        layer=target[1],
        draws=draws_in(dtype, options.dtypes, options.draws),
        seed=options.seed,
        status=Status.MISSING,
        reason=reason,
    )
