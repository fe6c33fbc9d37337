"""The check that the ranks' recorded collectives match one another, and the plan. No torch.

The calls of a group are the same on all its members, in the same order; each member sends by an all_to_all as many
elements as the other expects; each send has its receive. Which rank sends what may depend on its data or its number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain

from ..results.collective import EVERYWHERE, MESSAGES, Collective, Exchange
from ..results.result import Check

Calls = tuple[Collective, ...]
Recorded = Mapping[int, Calls]  # by rank


def schedule_check(
    planned: Calls | None,
    recorded: Recorded,
    unscheduled: Collection[str] = (),
    unawaited: Mapping[int, Collection[str]] | None = None,
) -> Check:
    """Check that the recorded calls match one another and the plan, where there is one, and that all were waited for.

    Args:
        planned: the calls of each rank, in order; None where there is no plan.
        recorded: each rank's calls, in order.
        unscheduled: kinds that are not compared.
        unawaited: by rank, a sentence on each call whose handle nobody waited for.
    """
    left_out = {*unscheduled, *(MESSAGES if set(MESSAGES) & set(unscheduled) else ())}
    recorded = {rank: _without(calls, left_out) for rank, calls in sorted(recorded.items())}
    planned = None if planned is None else _without(planned, left_out)
    left = (f"rank {rank}: {said}" for rank, sentences in sorted((unawaited or {}).items()) for said in sentences)
    findings = chain(left, _disorder(recorded), _splits(recorded), _messages(recorded), _departures(planned, recorded))
    detail = next(findings, "")
    return Check(name="schedule", passed=not detail, detail=detail or _compared(planned, recorded, left_out))


def _without(calls: Calls, kinds: Collection[str]) -> Calls:
    return tuple(call for call in calls if call.kind not in kinds)


def _compared(planned: Calls | None, recorded: Recorded, left_out: Collection[str]) -> str:
    """A sentence on what a check that passed has compared."""
    first = recorded[min(recorded)]
    everything = [call for calls in recorded.values() for call in calls]
    messages = sum(call.kind == "send" for call in everything)
    exchanges = sum(call.kind == "all_to_all" for call in everything)
    alike = all(calls == first for calls in recorded.values())
    said = [
        f"{len(first)} collectives, the same on all ranks"
        if alike
        else f"{len(everything)} calls, in each group the same kinds, dtypes, shapes, operations and roots in one order"
    ]
    said += ["as planned"] if planned is not None else []
    said += [f"in {exchanges} calls of all_to_all each rank sends what the others expect"] if exchanges else []
    said += [f"each of {messages} sends has its receive"] if messages else []
    said += [f"not compared: {', '.join(sorted(left_out))}"] if left_out else []
    return ", ".join(said)


def _departures(planned: Calls | None, recorded: Recorded) -> Iterator[str]:
    """Sentences on where ranks differ from the plan."""
    for rank, calls in recorded.items():
        plan = calls if planned is None else planned
        difference = _first_difference(list(enumerate(calls)), list(enumerate(plan)), lambda call: call)
        if difference:
            yield f"{f'rank {rank}' if rank else 'recorded'} against planned: {difference}"


def _disorder(recorded: Recorded) -> Iterator[str]:
    """Sentences on where a rank's calls differ from those of the first rank of the same groups."""
    groups = {_members(call, recorded) for calls in recorded.values() for call in calls if call.kind not in MESSAGES}
    pairs = {(rank, min(group)) for group in groups for rank in group if rank != min(group)}
    for rank, first in sorted(pairs):
        mine, other = (
            [(i, call) for i, call in enumerate(recorded[r]) if _shared(call, (rank, first), recorded)]
            for r in (rank, first)
        )
        difference = _first_difference(mine, other, _agreement)
        if difference:
            yield f"rank {rank} against rank {first}: {difference}"


def _shared(call: Collective, ranks: tuple[int, int], recorded: Recorded) -> bool:
    return call.kind not in MESSAGES and set(ranks) <= set(_members(call, recorded))


def _exchange(call: Collective) -> Exchange:
    return call.exchange or EVERYWHERE


def _members(call: Collective, recorded: Recorded) -> tuple[int, ...]:
    """The ranks of a call's group."""
    return _exchange(call).members or tuple(recorded)


def _agreement(call: Collective) -> object:
    """What must be the same on all members of a group; of an all_to_all, not the shape."""
    known = _exchange(call)
    shape = () if call.kind == "all_to_all" else call.shape
    return call.kind, shape, call.dtype, call.group_size, known.members, known.operation, known.peer


Numbered = list[tuple[int, Collective]]  # a rank's calls, each with its place among all of them


def _first_difference(actual: Numbered, expected: Numbered, of: Callable[[Collective], object]) -> str | None:
    """A sentence on the first call that differs in what `of` returns; None if none does."""
    for (position, a), (_, b) in zip(actual, expected, strict=False):
        if of(a) != of(b):
            return f"call {position} is {a} instead of {b}"
    if len(actual) != len(expected):
        return f"{len(actual)} collectives instead of {len(expected)}"
    return None


def _splits(recorded: Recorded) -> Iterator[str]:
    """Sentences on where a rank sends by an all_to_all another number of elements than the receiver expects."""
    groups: dict[tuple[int, ...], dict[int, list[Exchange]]] = {}
    for rank, calls in recorded.items():
        for call in calls:
            if call.kind == "all_to_all" and call.exchange:
                groups.setdefault(_members(call, recorded), {}).setdefault(rank, []).append(call.exchange)
    for members, exchanges in groups.items():
        places = {rank: members.index(rank) for rank in exchanges}
        for number in range(min(map(len, exchanges.values()))):
            for source, i in places.items():
                for target, j in places.items():
                    sent, expected = exchanges[source][number].sends[j], exchanges[target][number].receives[i]
                    if sent != expected:
                        yield (
                            f"all_to_all {number} over {len(members)} ranks: rank {source} sends {sent} elements to "
                            f"rank {target}, which expects {expected} from it"
                        )


Box = tuple[tuple[int, ...], int | None, int]  # where messages arrive: group, rank, tag
Mail = dict[Box, dict[int | None, list[Collective]]]  # and from whom


def _messages(recorded: Recorded) -> Iterator[str]:
    """Sentences on sends without a receive of the same dtype and bytes, and receives without such a send."""
    sent, received = Mail(), Mail()
    for rank, calls in recorded.items():
        for call in (call for call in calls if call.kind in MESSAGES):
            known, sends = _exchange(call), call.kind == "send"
            box = _members(call, recorded), (known.peer if sends else rank), known.tag
            of_box = (sent if sends else received).setdefault(box, {})
            of_box.setdefault(rank if sends else known.peer, []).append(call)
    for box in dict.fromkeys((*sent, *received)):
        gone, came = sent.get(box, {}), received.get(box, {})
        tag = f" with tag {box[2]}" if box[2] else ""
        if None in came:  # a receive from any rank takes the send that came first
            yield from _unpaired("any rank", box[1], tag, _by_size(gone), _by_size(came))
        else:
            for source in dict.fromkeys((*gone, *came)):
                yield from _unpaired(f"rank {source}", box[1], tag, gone.get(source, []), came.get(source, []))


def _by_size(by_source: Mapping[int | None, list[Collective]]) -> list[Collective]:
    return sorted((call for calls in by_source.values() for call in calls), key=lambda c: (c.dtype, c.bytes))


def _unpaired(
    source: str, target: int | None, tag: str, gone: list[Collective], came: list[Collective]
) -> Iterator[str]:
    if len(gone) != len(came):
        yield f"{source} sends {len(gone)} messages to rank {target}{tag}, which receives {len(came)} from it"
    for number, (send, receive) in enumerate(zip(gone, came, strict=False)):
        if (send.dtype, send.bytes) != (receive.dtype, receive.bytes):
            yield (
                f"message {number} from {source} to rank {target}{tag} is sent as {list(send.shape)} {send.dtype} and "
                f"received as {list(receive.shape)} {receive.dtype}"
            )
