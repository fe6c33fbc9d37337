"""Ways to put a mistake into a case: each returns what a Fault's `apply` is.

They work on every backend, because they change what a rank loads (`loads`) or the module it has built
(everything else, through `Case.edit`, after the rank's shards were recorded).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from ..case.case import Case
from ..parallel.group import Group, collective
from ..parallel.placements import Placement, QKVHeads

Apply = Callable[[Case], Case]
Load = Callable[[Placement, torch.Tensor, int, int], torch.Tensor]
Sum = Callable[[Group, torch.Tensor], torch.Tensor]


def edits(edit: Callable[[Any, Group], None]) -> Apply:
    """Let `edit(module, group)` change a rank's module after it was built and loaded."""

    def apply(case: Case) -> Case:
        def both(module: nn.Module, group: Group) -> None:
            case.edit(module, group)
            edit(module, group)

        return replace(case, edit=both)

    return apply


def all_of(*ways: Apply) -> Apply:
    """Put in several mistakes, one after the other."""

    def apply(case: Case) -> Case:
        for way in ways:
            case = way(case)
        return case

    return apply


@dataclass(frozen=True)
class Misloaded(Placement):
    """A placement whose shards are `load(right, full, rank, size)`, and whose join is the right placement's."""

    right: Placement
    load: Load

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """The wrong shard; it must have the right one's shape."""
        return self.load(self.right, full, rank, size)

    def join(self, shards: Any) -> torch.Tensor:
        """The full tensor, in its shape, as the right placement joins it."""
        return self.right.join(shards)


def loads(name: str, load: Load) -> Apply:
    """Let a rank load `load(placement, full, rank, size)` as its shard of a parameter, and hold it."""
    return lambda case: replace(case, plan={**case.plan, name: Misloaded(case.plan[name], load)})


def loads_from(name: str, whose: Callable[[int, int], int]) -> Apply:
    """Let a rank load the shard of rank `whose(rank, size)`."""
    return loads(name, lambda placement, full, rank, size: placement.shard(full, whose(rank, size), size))


def loads_parts(name: str, which: tuple[int, ...], load: Load) -> Apply:
    """As `loads`, but only for the query, key or value rows (parts 0, 1, 2) of the fused projection."""

    def fused(placement: Placement, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        right = _parts(placement, placement.shard(full, rank, size), size)
        wrong = _parts(placement, load(placement, full, rank, size), size)
        return torch.cat([wrong[i] if i in which else right[i] for i in range(3)])

    return loads(name, fused)


def _parts(placement: Placement, local: torch.Tensor, size: int) -> list[torch.Tensor]:
    """A rank's query, key and value rows of the fused projection."""
    assert isinstance(placement, QKVHeads)
    heads, kv_heads = placement.num_attention_heads // size, max(1, placement.num_key_value_heads // size)
    return list(local.split([n * placement.head_dim for n in (heads, kv_heads, kv_heads)]))


def computes(name: str, wrong: Callable[[torch.Tensor, int, int], torch.Tensor]) -> Apply:
    """Let a rank compute with `wrong(shard, rank, size)`, of any shape, instead of the shard it holds."""
    return edits(lambda module, group: put(module, name, wrong(module.get_parameter(name), group.rank, group.size)))


def put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace the parameter `name` by a value of any shape and dtype, without gradient."""
    owner, _, leaf = name.rpartition(".")
    with suppress(AttributeError):
        delattr(module.get_submodule(owner), leaf)
    module.get_submodule(owner).register_parameter(leaf, nn.Parameter(value, requires_grad=False))


def sets(owner: str, **values: Callable[[Any, Group], object]) -> Apply:
    """Set attributes of a submodule ("" is the module itself) to `value(submodule, group)`."""

    def edit(module: nn.Module, group: Group) -> None:
        submodule = module.get_submodule(owner)
        for name, value in values.items():
            setattr(submodule, name, value(submodule, group))

    return edits(edit)


def runs(owner: str, method: str, code: Callable[..., object]) -> Apply:
    """Run `code` as a method of a submodule."""
    return sets(owner, **{method: lambda submodule, group: MethodType(code, submodule)})


def passes(tap: str, wrong: Callable[[torch.Tensor, Group], torch.Tensor]) -> Apply:
    """Replace a tapped tensor, of any shape, by `wrong(tensor, group)`."""

    def edit(module: nn.Module, group: Group) -> None:
        module.get_submodule(tap).register_forward_hook(lambda _module, _inputs, output: wrong(output, group))

    return edits(edit)


class Rewired(Group):
    """A group with another sum, gather or exchange; what these really call is recorded as usual.

    `calls` are methods of Group by name, with the right group in the place of `self`.
    """

    def __init__(self, inner: Group, calls: Mapping[str, Callable[..., torch.Tensor]]) -> None:
        super().__init__(inner.rank, inner.size)
        self.inner, self._calls = inner, calls

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of `x`, any shape."""
        return self._made("all_reduce")(x)

    def all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The gather over ranks of `x`, any shape."""
        return self._made("all_gather")(x, dim)

    def reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's slice of the sum over ranks of `x`, any shape."""
        return self._made("reduce_scatter")(x, dim)

    def all_to_all(self, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
        """The exchange of the parts of `x`, any shape."""
        return self._made("all_to_all")(x, split_dim, concat_dim)

    def _made(self, name: str) -> Callable[..., torch.Tensor]:
        return partial(self._calls[name], self.inner) if name in self._calls else getattr(self.inner, name)


def reduces(owner: str, total: Sum) -> Apply:
    """Let a submodule sum over ranks by `total(group, x)`."""
    return rewires(owner, all_reduce=total)


def gathers(owner: str, gather: Callable[[Group, torch.Tensor, int], torch.Tensor]) -> Apply:
    """Let a submodule gather over ranks by `gather(group, x, dim)`, x of any shape."""
    return rewires(owner, all_gather=gather)


def rewires(owner: str, attribute: str = "group", **calls: Callable[..., torch.Tensor]) -> Apply:
    """Let a submodule exchange tensors, of any shape, otherwise by the group that is its `attribute`: see `Rewired`."""
    return sets(owner, **{attribute: lambda submodule, _: Rewired(getattr(submodule, attribute), calls)})


def everyone(group: Group, x: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's `x`, all of the same shape and dtype, in rank order; not recorded."""
    return list(group._all_gather(x[None].contiguous(), 0).unbind()) if group.size > 1 else [x]


def sum_of_pair(group: Group, x: torch.Tensor) -> torch.Tensor:
    """The sum of `x`, any shape, over this rank's pair (0 and 1, 2 and 3, ...), recorded as a sum over two ranks."""
    if group.size > 1:
        group.calls.append(collective("all_reduce", 2, tuple(x.shape), x.dtype))
    first = group.rank // 2 * 2
    return torch.stack(everyone(group, x)[first : first + 2]).sum(0)


def unseen_sum(group: Group, x: torch.Tensor) -> torch.Tensor:
    """The sum of `x`, any shape, over all ranks; not recorded."""
    return group._all_reduce(x) if group.size > 1 else x


def is_last(group: Group) -> bool:
    """Whether this is the last of several ranks."""
    return group.rank == group.size - 1 > 0
