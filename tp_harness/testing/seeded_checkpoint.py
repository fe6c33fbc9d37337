"""The checkpoint of a built module that was given none: its own full state, drawn with seed 0."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..case.state_dict import weights_of
from ..nxd import join_if_used
from ..parallel.group import TorchGroup
from ..parallel.placements import Replicate
from .module_server import Made, ShardedModule


def make_checkpoint(module_cls: Callable[..., nn.Module], kwargs: dict[str, Any], path: Path) -> None:
    """Write the full state dict of a module built with seed 0 on one rank; whole when it appears."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        ShardedModule(partial(_save_full, module_cls, kwargs, unfinished, path.suffix), 1, Replicate()).close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _save_full(
    module_cls: Callable[..., nn.Module], kwargs: dict[str, Any], path: Path, suffix: str, _group: TorchGroup
) -> Made:
    join_if_used()
    torch.manual_seed(0)
    module = module_cls(**kwargs)
    state = {name: tensor.detach().contiguous() for name, tensor in weights_of(module, module_cls.__name__).items()}
    if suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)  # it refuses tied tensors
    else:
        torch.save(state, path)
    return Made(module=module)
