"""A collective call of one rank, as it was recorded, and the ranks that took part. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

KINDS = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "all_to_all",
    "reduce",
    "gather",
    "scatter",
    "send",
    "recv",
)
MESSAGES = ("send", "recv")  # kinds between two ranks; all others concern the whole group


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The ranks that took part in a call. Ranks are numbered as in the default group, sizes are in elements.

    Args:
        members: the ranks of its group; () for all ranks.
        axis: the axis of a mesh that the group is along; "" for all ranks and for a group that is along none.
        peer: the rank that a send, reduce or gather goes to, or that a recv, broadcast or scatter comes from; None
            for a recv from any rank, and for the other kinds.
        tag: of a send or recv.
        operation: of a reduction, "sum" or "max" for example; "" where that is not known.
        sends, receives: of an all_to_all, what goes to and comes from each member, in their order.
    """

    members: tuple[int, ...] = ()
    peer: int | None = None
    tag: int = 0
    operation: str = ""
    sends: tuple[int, ...] = ()
    receives: tuple[int, ...] = ()
    axis: str = ""


EVERYWHERE = Exchange()  # of a call without details: all ranks take part


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective call of one rank: `shape` and `bytes` are those of the rank's input.

    A recv or a scatter has those of its output. `seconds` is how long the call took, waiting for other ranks included;
    None where that was not measured. `exchange` has the ranks that took part, None where that is not known. Both are
    ignored when two calls are compared.
    """

    kind: str
    group_size: int
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    seconds: float | None = field(default=None, compare=False)
    exchange: Exchange | None = field(default=None, compare=False)

    def __str__(self) -> str:
        known = self.exchange or EVERYWHERE
        operation = f" ({known.operation})" if known.operation not in ("", "sum") else ""
        whom = f"ranks {', '.join(map(str, known.members))}" if known.members else f"{self.group_size} ranks"
        whom += f" of axis {known.axis}" if known.axis else ""
        return f"{self.kind}{operation} {list(self.shape)} {self.dtype} over {whom}{self._peer(known)}"

    def _peer(self, known: Exchange) -> str:
        if known.peer is None:
            return " from any rank" if self.kind == "recv" and self.exchange else ""
        return f" {'to' if self.kind in ('send', 'reduce', 'gather') else 'from'} rank {known.peer}"
