"""Routers of a module: how they are declared, and their choice observed and locked.

A router written for this has two torch.nn.Identity submodules, through which its logits and its choice pass; one of a
library returns them, or calls torch.topk. Reference and sharded module have the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import UsageError
from ..parallel.dtensors import like, whole
from .calls import now
from .ranking_calls import Ranked, RankingCalls, beginning_with, last_choice, scores_of
from .taps import CHOSEN, LOGITS, SCORES, Source, same_choice, tap_name
from .top_k import ONE_GROUP, Groups, in_order_of, margins, top_k

EXACTLY = 1e-12  # of the least score that is chosen: what float64 may round between scores and their order
OUTPUTS = {"logits": LOGITS, "chosen": CHOSEN, "scores": SCORES}


@dataclass(frozen=True)
class Router:
    """A submodule that chooses experts.

    Args:
        name: of the submodule; "" is the module itself.
        outputs: empty for a router with the submodules `router_logits` and `chosen`. Otherwise what the submodule
            returns, in order: "logits" (tokens, experts), "chosen" (tokens, k) expert numbers, "scores" (tokens,
            experts) that were sorted; any other name for what is not looked at, such as "weights". Without "chosen",
            the choice is that of the last torch.topk, sort or argmax over all experts in the submodule.
        groups: of experts, where the choice is made in groups.

    Raises:
        UsageError: outputs that are no names, or one that is known twice.
    """

    name: str
    outputs: tuple[str, ...] = ()
    groups: Groups = ONE_GROUP

    def __post_init__(self) -> None:
        known = [name for name in self.outputs if name in OUTPUTS]
        if not all(isinstance(name, str) for name in self.outputs) or len(set(known)) != len(known):
            raise UsageError(
                f'outputs of the router {self.name!r} are {self.outputs!r}; a name for each is needed, and "logits", '
                '"chosen" and "scores" at most once, for example ("logits", "weights", "chosen").'
            )

    @property
    def chosen(self) -> str:
        """The tap name of its choice."""
        return tap_name(self.name, CHOSEN)

    @property
    def logits(self) -> str:
        """The tap name of its logits."""
        return tap_name(self.name, LOGITS)

    @property
    def scores(self) -> str:
        """The tap name of the scores that it sorts."""
        return tap_name(self.name, SCORES)

    @property
    def shown(self) -> tuple[str, ...]:
        """The tap names of the tensors that it shows on every rank."""
        return (*((self.logits,) if self.logits in self.sources else ()), self.chosen)

    @property
    def sources(self) -> dict[str, Source]:
        """Tap name -> the submodule that gives it, and which of its outputs (None: the only one)."""
        if not self.outputs:
            return {tap: (tap, None) for tap in (self.logits, self.scores, self.chosen)}
        return {
            tap_name(self.name, OUTPUTS[output]): (self.name, at)
            for at, output in enumerate(self.outputs)
            if output in OUTPUTS
        }


class Lock(NamedTuple):
    """What a router shall choose: `chosen` (tokens, k) of so many experts; `rows` are a rank's tokens, None for all."""

    chosen: torch.Tensor
    experts: int
    rows: torch.Tensor | None = None

    def of(self, own: torch.Tensor, columns: int | None, seen: int = 0) -> torch.Tensor | None:
        """The choice in shape (..., k), dtype and order of a router's own; None where tokens, k or experts differ.

        `columns` are the experts of its scores, None where not known. `seen` tokens were routed by earlier calls, where
        a router is given its tokens in chunks.
        """
        if columns not in (None, self.experts):
            return None
        of_rank = self.chosen if self.rows is None else self.chosen[self.rows]
        choices = (self.chosen, of_rank, of_rank[seen : seen + own.shape[:-1].numel()])
        fit = (x for x in choices if x.numel() == own.numel() and x.shape[-1:] == own.shape[-1:])
        return next((in_order_of(own, x.view(own.shape)) for x in fit), None)


@dataclass
class Routed:
    """What routers did.

    `tensors` by tap name, (tokens, experts) or (tokens, k), those of a router's calls in order; `groups` those that
    were recognised, by router; `unlocked` the routers whose choice differed and could not be replaced.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    groups: dict[str, Groups] = field(default_factory=dict)
    unlocked: list[str] = field(default_factory=list)

    def scores(self, router: Router) -> str:
        """The tap name of the scores by which a router chose; of its logits where no scores are known."""
        return router.scores if router.scores in self.tensors else router.logits

    def groups_of(self, router: Router) -> Groups:
        """The declared groups of experts, or else those that were recognised."""
        return router.groups if router.groups.count > 1 else self.groups.get(router.name, ONE_GROUP)


def check_choices(of: str, routers: Iterable[Router], routed: Routed) -> None:
    """Check that the choices of a float64 run follow from the scores that are known.

    Args:
        of: what has the routers, for the message.
        routers: all that were observed.
        routed: what they did.

    Raises:
        UsageError: a choice does not, so that another choice could not be judged; or a router shows no scores.
    """
    for router in routers:
        who = f"router {router.name} of {of}" if router.name else f"the router of {of}"
        tap, groups = routed.scores(router), routed.groups_of(router)
        for needed, what in ((router.chosen, "choice"), (tap, "scores")):
            if needed not in routed.tensors:
                leaf = needed.rpartition(".")[2]
                raise UsageError(f"{who} shows no {what}: let it pass `{leaf}`, or name it in `outputs`.")
        chosen, scores = routed.tensors[router.chosen], routed.tensors[tap].to(torch.float64)
        if len(scores) != len(chosen):
            raise UsageError(f"{tap} of {of} has {len(scores)} tokens, and {router.chosen} has {len(chosen)}.")
        at_stake = scores.masked_fill(~scores.isfinite(), 0.0).gather(-1, chosen.clamp(0, scores.shape[-1] - 1))
        wrong = margins(scores, chosen, groups) > EXACTLY * at_stake.abs().amin(-1)
        if wrong.any():
            token = int(wrong.nonzero()[0])
            right = top_k(scores[token : token + 1], chosen.shape[-1], groups)[0]
            raise UsageError(
                f"the choice of {who} does not follow from {tap}: token {token} of the reference chose experts "
                f"{sorted(chosen[token].tolist())}, and the best are {sorted(right.tolist())}. Let what is sorted pass "
                f"through a submodule `{SCORES}` of both modules, and say groups of experts by routing=(Router(...),)."
            )


@contextmanager
def routing(
    module: nn.Module, routers: Iterable[Router], locks: Mapping[str, Lock] | None = None, *, watch: bool = False
) -> Iterator[Routed]:
    """Record every router's logits [tokens, experts] and own choice [tokens, k]; lock the choice if asked.

    `locks` maps the tap name of a choice to what replaces it. A choice of another number of experts, or from other
    logits, stays as it is, because a lock would hide it from the verdict. With `watch`, the scores by which a choice
    was made are recorded too, and the groups; that costs a little time at every operation.
    """
    record = Routed()
    with ExitStack() as stack:
        for router in routers:
            _Observer(module, router, record, (locks or {}).get(router.chosen), watch=watch).enter(stack)
        yield record


class _Observer:
    """One router of one module while it runs."""

    def __init__(self, module: nn.Module, router: Router, record: Routed, lock: Lock | None, *, watch: bool) -> None:
        self.module, self.router, self.record, self.lock, self.watch = module, router, record, lock, watch
        self.calls: list[Ranked] = []
        self.replaced: list[tuple[torch.Tensor, torch.Tensor]] = []  # what a call gave instead, and its own choice
        self.mode: RankingCalls | None = None

    def enter(self, stack: ExitStack) -> None:
        """Register what listens, until the stack is closed."""
        known, forget = dict(self.module.named_modules()), self.module.register_forward_pre_hook(self._forget)
        stack.callback(forget.remove)
        if self.watch or self.router.outputs:
            owner = known[self.router.name]
            stack.callback(owner.register_forward_pre_hook(self._begin).remove)
            stack.callback(owner.register_forward_hook(self._end, always_call=True).remove)
        for tap, (source, at) in self.router.sources.items():
            if source in known:
                stack.callback(known[source].register_forward_hook(self._listener(tap, at)).remove)

    def _listener(self, tap: str, at: int | None) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
            value = output if at is None else output[at] if isinstance(output, (tuple, list)) else None
            flat = _flat(tap, value, whole_numbers=tap == self.router.chosen)
            own = tap == self.router.chosen
            return self._chosen(output, flat, inside=at is not None) if own else self._add(tap, flat)

        return hook

    def _chosen(self, output: Any, flat: torch.Tensor, *, inside: bool) -> Any:
        """Note the router's own choice; the locked one, if there is one and it can be put here.

        Where the choice was replaced inside a call and the router returns another one, the returned one counts.
        """
        seen = self._tokens(self.router.chosen)
        locked = self.lock.of(flat, None, seen) if self.lock else None
        other = inside and locked is not None and not same_choice(flat, locked).all()
        self._note(self._own(flat) if self.replaced and not other else flat)
        if other and not self.replaced:
            self.record.unlocked.append(self.router.name)
        logits = self.record.tensors.get(self.router.logits)
        columns = None if logits is None else logits.shape[-1]
        locked = None if inside or self.lock is None else self.lock.of(whole(output), columns, seen)
        return None if locked is None else like(locked, output)

    def _own(self, returned: torch.Tensor | None = None) -> torch.Tensor:
        """Its own choice in the replaced call that gave `returned`, else in the last; others may be for statistics."""
        at = None if returned is None else returned.untyped_storage().data_ptr()
        made = [own for given, own in self.replaced if given.untyped_storage().data_ptr() == at]
        return made[0] if made else self.replaced[-1][1]

    def _note(self, own: torch.Tensor) -> None:
        """Its own choice, and the scores and groups by which it was made."""
        self._add(self.router.chosen, own)
        returned = self.router.outputs and self.router.scores in self.router.sources
        if self.watch and not returned and self._tokens(self.router.scores) < self._tokens(self.router.chosen):
            calls, self.calls = self.calls, []
            found = scores_of(calls, own)
            self.calls = []  # what `scores_of` sorted was seen too
            if found:
                self._add(self.router.scores, found[0])
                self.record.groups[self.router.name] = found[1]

    def _forget(self, _module: nn.Module, _inputs: object) -> None:
        """Forget the record of an earlier run when the module runs again."""
        for tap in (self.router.logits, self.router.scores, self.router.chosen) if now().first else ():
            self.record.tensors.pop(tap, None)

    def _add(self, tap: str, flat: torch.Tensor) -> None:
        """Append what a call of the router gives to what its earlier calls gave."""
        before = self.record.tensors.get(tap)
        self.record.tensors[tap] = flat if before is None else torch.cat((before, flat))

    def _tokens(self, tap: str) -> int:
        """How many tokens the router was given in this forward so far."""
        return len(self.record.tensors.get(tap, ()))

    def _begin(self, _module: nn.Module, _inputs: object) -> None:
        self.calls, self.replaced = [], []
        self.mode = RankingCalls(self._see)
        self.mode.__enter__()

    def _end(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode = None
        if self.router.chosen not in self.router.sources:
            chosen = self._own() if self.replaced else last_choice(self.calls)
            if chosen is not None:
                self._note(chosen)

    def _see(self, call: Ranked) -> torch.Tensor | None:
        """Record a ranking call; replace its choice if the router has no tap for it."""
        if self.watch or self.router.chosen not in self.router.sources:
            self.calls.append(Ranked(*(None if x is None else x.detach().clone() for x in call)))  # type: ignore[arg-type]
        if self.lock is None or not self.router.outputs or call.indices is None:
            return None
        if call.scores.shape[-1] != self.lock.experts:
            return None
        k = self.lock.chosen.shape[-1]
        best = call.indices[..., :k]
        locked = self.lock.of(best, None, self._tokens(self.router.chosen))
        if locked is None or call.indices.shape[-1] not in (k, self.lock.experts):
            return None
        given = locked.clone() if call.indices.shape[-1] == k else beginning_with(locked, call.indices)
        self.replaced.append((given, best.detach().reshape(-1, k).clone()))
        return given


def _flat(tap: str, value: object, *, whole_numbers: bool) -> torch.Tensor:
    """Tokens as rows.

    Raises:
        TypeError: no tensor, or of the wrong kind.
    """
    kind = "expert numbers (tokens, k)" if whole_numbers else "floating-point numbers (tokens, experts)"
    what = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
    if not isinstance(value, torch.Tensor) or not value.ndim or whole_numbers == value.is_floating_point():
        raise TypeError(f"{tap} of a router is {what}; {kind} are needed")
    return whole(value).detach().reshape(-1, value.shape[-1])
