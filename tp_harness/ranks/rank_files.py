"""What ranks leave: one file per rank, and one per large tensor, which ranks that hold the same bits share.

32 ranks that each give all logits of a large vocabulary would leave gigabytes of copies. A rank writes a large tensor
under a name made of its bits, unless it is there; reading gives all its owners the same tensor.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..checkpoint.checkpoint import Checkpoint, TensorSpec, write_checkpoint

LARGE_BYTES = 1 << 20
_TENSOR = "tensor"  # the name of the only tensor in a file of its own
Tensors = dict[str, torch.Tensor]


def digest(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bits."""
    return hashlib.blake2b(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def put_aside(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, dict[str, str]]:
    """Write the large tensors down at once, so that a rank need not hold them while it goes on.

    Args:
        path: of the rank's own file.
        tensors: by name, contiguous.

    Returns:
        The other tensors, and the file of each that was written, by name. A file is complete when the ranks' own files
        are all there: the rank that made it writes its own file later.
    """
    large = {name: tensor for name, tensor in tensors.items() if tensor.nbytes >= LARGE_BYTES}
    aside = {}
    for name, tensor in large.items():
        kind = f"{str(tensor.dtype).removeprefix('torch.')}-{'x'.join(map(str, tensor.shape))}"
        file = path.with_name(f"{_shared_stem(path)}{kind}-{digest(tensor)}.safetensors")
        aside[name] = file.name
        try:
            file.open("xb").close()  # the first rank writes, the others have nothing to add
        except FileExistsError:
            continue
        write_tensors(file, {_TENSOR: tensor}, {})
    return {name: tensor for name, tensor in tensors.items() if name not in large}, aside


def write_output(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write a rank's own file, which is complete when it appears."""
    unfinished = path.with_suffix(".part")
    write_tensors(unfinished, tensors, {"facts": json.dumps(facts)})
    unfinished.replace(path)


def read_output(path: Path, seen: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """A rank's tensors by name, and its facts; `seen` holds the large tensors read so far, by file."""
    with safe_open(path, framework="pt") as file:
        tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    for name, large in facts["aside"].items():
        if large not in seen:
            seen[large] = Checkpoint([path.with_name(large)]).tensor(_TENSOR)
        tensors[name] = seen[large]
    return tensors, facts


def remove_outputs(paths: Iterable[Path]) -> None:
    """Delete the files of a task's ranks, and the large tensors that they share."""
    for path in paths:
        path.unlink(missing_ok=True)
    for file in path.parent.glob(glob.escape(_shared_stem(path)) + "*"):
        file.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, written without the copy in memory that the library's own writer makes."""
    specs = [TensorSpec(name=name, shape=tuple(x.shape), dtype=x.dtype) for name, x in tensors.items()]
    write_checkpoint(path, specs, lambda spec: tensors[spec.name], metadata)


def _shared_stem(path: Path) -> str:
    """`mlp.0.d0.tp8.rank3` is one of those that share `mlp.0.d0.tp8.shared-...`."""
    return path.stem.rpartition(".")[0] + ".shared-"
