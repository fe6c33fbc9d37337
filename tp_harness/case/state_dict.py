"""Which part of a state_dict is compared and cut: parameters and buffers. Other objects in it stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import UsageError, doing
from ..libraries.torch_private import EXTRA_STATE


def weights_of(module: nn.Module, side: str, *, keep_vars: bool = False) -> dict[str, torch.Tensor]:
    """The parameters and buffers in the module's state_dict, by name, of any shape and dtype.

    Args:
        module: a reference or a rank's module.
        side: how messages call it.
        keep_vars: give the parameters themselves, with their attributes.

    Raises:
        UsageError: its state_dict is no mapping.
    """
    with doing(f"state_dict of {side}"):
        state = module.state_dict(keep_vars=keep_vars) if keep_vars else module.state_dict()
    if not isinstance(state, Mapping):
        raise UsageError(f"state_dict of {side} returns a {type(state).__name__}; a mapping of names is needed.")
    return {name: tensor for name, tensor in state.items() if _is_weight(name, tensor)}


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], side: str, *, assign: bool = False) -> None:
    """Load these tensors, each of its parameter's shape; what else is in the module's state_dict stays as it is."""
    with doing(f"load_state_dict of {side}"):
        state = module.state_dict()
        others = {name: value for name, value in state.items() if not _is_weight(name, value)}
        module.load_state_dict({**others, **weights}, assign=assign)


def _is_weight(name: str, value: object) -> bool:
    """Whether an entry is a weight: extra state may be a tensor too, of pickled bytes."""
    return isinstance(value, torch.Tensor) and name.rpartition(".")[2] != EXTRA_STATE
