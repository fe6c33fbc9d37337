"""What an own reference does with the last dimension of its tensors: how it splits it, and what it reduces over it.

This shows the parts of a fused projection, the heads of attention, and the features that a norm runs over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .own import rerun
from .site import Site, UnavailableError

SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split")
VIEWS = ("view", "reshape", "unflatten")
STATISTICS = ("mean", "sum", "var", "std", "norm", "amax", "amin", "logsumexp")  # one number for each row
WHOLE = ("softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm")  # as many numbers as there were


@dataclass
class Seen:
    """`parts`: sizes into which a last dimension was split; `heads`: (number, elements of each); `reductions`: the
    name of each call that reduced the last dimension, and its length."""

    parts: dict[tuple[int, ...], None] = field(default_factory=dict)  # in order
    heads: dict[tuple[int, int], None] = field(default_factory=dict)
    reductions: list[tuple[str, int]] = field(default_factory=list)


class Watch(TorchFunctionMode):
    """Notes what is done while it is entered; `change` may do a reduction in another way."""

    def __init__(self, change: Callable[[int, Call], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.seen, self.change = Seen(), change

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, and note it."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        x = args[0] if args else None
        if not isinstance(x, torch.Tensor) or not x.ndim:
            return func(*args, **kwargs)
        call = Call(func, name, x, args[1:], kwargs)
        if call.reduces_last:
            self.seen.reductions.append((name, call.length))
            if self.change:
                return self.change(len(self.seen.reductions) - 1, call)
        given = func(*args, **kwargs)
        if name in SPLITS and all(part.shape[:-1] == x.shape[:-1] for part in given):
            self.seen.parts[tuple(part.shape[-1] for part in given)] = None
        if name == "__getitem__" and isinstance(given, torch.Tensor) and given.shape[:-1] == x.shape[:-1]:
            self._sliced(x, args[1])
        if name in VIEWS and given.ndim > 1 and given.shape[-2:].numel() == x.shape[-1]:
            self.seen.heads[given.shape[-2], given.shape[-1]] = None
        return given

    def _sliced(self, x: torch.Tensor, index: Any) -> None:
        """Two parts, at where a slice of the last dimension begins or ends."""
        last = index[-1] if isinstance(index, tuple) else None
        if isinstance(last, slice) and last.step in (None, 1):
            first, end, _ = last.indices(x.shape[-1])
            for at in (first, end):
                if 0 < at < x.shape[-1]:
                    self.seen.parts[at, x.shape[-1] - at] = None


@dataclass
class Call:
    """A call of a torch function on a tensor."""

    func: Any
    name: str
    x: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def length(self) -> int:
        """Elements of the dimension that it reduces: the channels of a group norm, else the last dimension."""
        return self.x.shape[1 if self.name == "group_norm" else -1]

    @property
    def reduces_last(self) -> bool:
        """Whether it reduces the last dimension, and no other, in a form that can be done in blocks."""
        if self.name not in STATISTICS + WHOLE or not self.x.is_floating_point():
            return False
        if self.name == "group_norm":
            return True  # its channels
        if self.name in ("layer_norm", "rms_norm"):
            return tuple(self.args[0] if self.args else self.kwargs["normalized_shape"]) == self.x.shape[-1:]
        dim = self.kwargs.get("dim", self.args[0] if self.args else None)
        dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
        if not isinstance(dim, int) or dim % self.x.ndim != self.x.ndim - 1:
            return False
        return self.name in WHOLE or self._keeps()

    def _keeps(self) -> bool:
        return bool(self.kwargs.get("keepdim", self.args[1] if len(self.args) > 1 else False))

    def again(self) -> torch.Tensor:
        """Repeat the call: what it gave, in that shape and dtype."""
        given: torch.Tensor = self.func(self.x, *self.args, **self.kwargs)
        return given

    def in_blocks(self, count: int) -> torch.Tensor:
        """Repeat the call, each of `count` equal blocks of the reduced dimension by itself.

        The result has the dtype of the call's, and a shape that broadcasts with `x` as the call's does.
        """
        if self.name == "group_norm":  # as many groups in each block
            kwargs = self.kwargs | ({"num_groups": self.kwargs["num_groups"] * count} if not self.args else {})
            given: torch.Tensor = self.func(self.x, *(self.args and (self.args[0] * count, *self.args[1:])), **kwargs)
            return given
        blocks = self.x.unflatten(-1, (count, -1))
        if self.name in ("layer_norm", "rms_norm"):
            return self._normed(blocks)
        kwargs = self.kwargs | ({"dim": -1} if "dim" in self.kwargs else {})
        args = (-1, *self.args[1:]) if self.args else ()
        given = self.func(blocks, *args, **kwargs)
        return given.expand(blocks.shape).reshape(self.x.shape)

    def _normed(self, blocks: torch.Tensor) -> torch.Tensor:
        names = ("normalized_shape", "weight", "bias", "eps") if self.name == "layer_norm" else (
            "normalized_shape", "weight", "eps")  # fmt: skip
        given = dict(zip(names, self.args, strict=False)) | self.kwargs
        weight, bias = given.pop("weight", None), given.pop("bias", None)
        given["normalized_shape"] = blocks.shape[-1:]
        normed: torch.Tensor = self.func(blocks, **given).flatten(-2)
        normed = normed if weight is None else normed * weight
        return normed if bias is None else normed + bias


def seen(site: Site) -> Seen:
    """What the reference does in one run; nothing where it cannot be run."""
    if "seen" not in site.memo:
        watch = Watch()
        with suppress(UnavailableError):  # a module that does not run so tells nothing
            rerun(site, watched=watch)
        site.memo["seen"] = watch.seen
    found: Seen = site.memo["seen"]
    return found
