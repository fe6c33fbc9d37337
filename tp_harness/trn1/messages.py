"""What a rank sends: collectives, by kind, bytes and ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Message:
    """A collective over `ranks`; `bytes` are those of one rank's input, as in result.Collective."""

    kind: str
    bytes: int
    ranks: int


def messages(*calls: tuple[str, int, int]) -> tuple[Message, ...]:
    """Calls, each its kind, bytes and ranks; one over a single rank is none."""
    return tuple(Message(kind=kind, bytes=size, ranks=ranks) for kind, size, ranks in calls if ranks > 1)
