"""Several hosts under one torchrun: each verifies its share of the targets, and host 0 puts the results together.

A tensor-parallel group stays within a host, so what travels between hosts is results: JSON in torchrun's own store,
which host 0 serves. No file is assumed to be shared; each host also has a run.json of its own.

Not covered: hosts with different numbers of ranks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..errors import UsageError
from ..results.from_json import from_json
from ..results.result import Result, to_json
from ..results.run_record import RunRecord

BEAT_SECONDS = 0.5
MOST_SILENCE = 60.0  # seconds without a beat, at most, after which a host counts as lost
T = TypeVar("T")


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str) -> None:
        """Store a value under a key."""

    def get(self, key: str) -> bytes:
        """The value of a key that exists."""

    def add(self, key: str, amount: int) -> int:
        """Add `amount` to a count and return the sum; the answer proves that the store was reached."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys exist."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """This host among those of a torchrun: its number, how many there are, and the ranks of each."""

    index: int
    count: int
    ranks: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Host:
        """This host, by torchrun's variables.

        Raises:
            UsageError: the hosts have different numbers of ranks.
        """
        ranks, world = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        index = int(environment["GROUP_RANK"])
        if world % ranks or int(environment["RANK"]) != index * ranks + int(environment["LOCAL_RANK"]):
            raise UsageError(
                f"host {index} has {ranks} of {world} ranks; the same --nproc-per-node is needed on every host, "
                "because it is the degree."
            )
        return cls(index=index, count=world // ranks, ranks=ranks)

    def share(self, targets: tuple[T, ...]) -> tuple[T, ...]:
        """This host's part of the targets; the parts of all hosts together are all targets."""
        return targets[self.index :: self.count]


class Publisher(threading.Thread):
    """Sends host 0 each result when it is found, and signs of life in between.

    Args:
        host: this one.
        store: torchrun's.
        record: of this host's results.
        silence: seconds without an answer after which host 0 counts as lost, `MOST_SILENCE` at most; as `Collector`
            counts, so that both give up at about the same time.
    """

    def __init__(self, host: Host, store: Store, record: RunRecord, silence: float) -> None:
        super().__init__(daemon=True)  # a store that does not answer must not keep the process
        self._host, self._store, self._record = host, store, record
        self._silence = min(silence, MOST_SILENCE)
        self._answered = time.monotonic()
        self._told: dict[int, Result] = {}
        self._events = 0
        self._ending = threading.Event()
        self.complete = False

    @property
    def lost(self) -> bool:
        """Whether host 0 has not answered for too long; it then counts this host as lost, or will."""
        return not self.complete and time.monotonic() - self._answered > self._silence

    def when_lost(self, act: Callable[[], None]) -> None:
        """Call `act` in a thread of its own, once, if host 0 is lost before `finish` is called."""

        def watch() -> None:
            while not self._ending.wait(BEAT_SECONDS):
                if self.lost:
                    act()
                    return

        threading.Thread(target=watch, daemon=True).start()

    def run(self) -> None:
        """Send results and signs of life until `finish` is called or the store is gone."""
        try:
            while not self._ending.wait(BEAT_SECONDS):
                self._publish()
            self._publish()
            self._tell({"done": True, "notes": self._record.notes})
            self.complete = True
        except Exception:  # DistStoreError and its like have no common base; `complete` stays False
            return

    def finish(self) -> bool:
        """Send the rest; returns whether host 0's store has taken all of it, and False once host 0 is lost."""
        self._ending.set()
        while self.is_alive() and not self.lost:
            self.join(BEAT_SECONDS)
        return self.complete

    def _publish(self) -> None:
        for index, result in enumerate(list(self._record.results)):
            if self._told.get(index) is not result:
                self._tell({"index": index, "result": to_json(result)})
                self._told[index] = result
        self._count("beat")

    def _tell(self, event: dict[str, Any]) -> None:
        self._store.set(_key(self._host.index, f"event{self._events}"), json.dumps(event, allow_nan=False))
        self._events += 1
        self._count("events")

    def _count(self, name: str) -> None:
        self._store.add(_key(self._host.index, name), 1)
        self._answered = time.monotonic()


class Collector:
    """Host 0's side: listens from the start, and in the end receives what the others send until they are done.

    Args:
        host: this one.
        store: torchrun's.
        record: gets the results of the others.
        silence: seconds without a sign of life after which a host counts as lost, `MOST_SILENCE` at most.
    """

    def __init__(self, host: Host, store: Store, record: RunRecord, silence: float) -> None:
        self._store, self._record = store, record
        self._silence = min(silence, MOST_SILENCE)
        self._waiting = {index: _Peer(index) for index in range(host.count) if index != host.index}
        self._collecting = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        while not self._collecting.wait(BEAT_SECONDS):
            for peer in self._waiting.values():
                self._hear(peer)

    def collect(self) -> tuple[int, ...]:
        """Add the results of all hosts to the record; returns the indices of the hosts that were lost."""
        lost = []
        self._collecting.set()
        self._listener.join()
        while self._waiting:
            for peer in list(self._waiting.values()):
                self._take(peer)
                if peer.done or time.monotonic() - peer.heard > self._silence:
                    lost += [] if peer.done else [peer.index]
                    del self._waiting[peer.index]
            time.sleep(BEAT_SECONDS / 5)
        return tuple(lost)

    def _take(self, peer: _Peer) -> None:
        while peer.events < self._count(peer, "events"):
            event = json.loads(self._store.get(_key(peer.index, f"event{peer.events}")))
            peer.events += 1
            if "done" in event:
                peer.done = True
                self._record.notes += [f"host {peer.index}: {note}" for note in event["notes"]]
                continue
            result = from_json(Result, event["result"])
            if event["index"] in peer.places:
                self._record.replace(peer.places[event["index"]], result)
            else:
                peer.places[event["index"]] = len(self._record.results)
                self._record.add(result)
        self._hear(peer)

    def _hear(self, peer: _Peer) -> None:
        beat = self._count(peer, "beat")
        if beat != peer.beat:
            peer.beat, peer.heard = beat, time.monotonic()

    def _count(self, peer: _Peer, name: str) -> int:
        key = _key(peer.index, name)
        return int(self._store.get(key)) if self._store.check([key]) else 0


class _Peer:
    """What is known of another host. `places`: index of a result there -> index in the record here."""

    def __init__(self, index: int) -> None:
        self.index, self.events, self.beat, self.heard, self.done = index, 0, 0, time.monotonic(), False
        self.places: dict[int, int] = {}


def _key(host: int, name: str) -> str:
    return f"tp_harness/{host}/{name}"
