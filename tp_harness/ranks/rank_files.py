"""The output files of ranks: one per rank, and one per large tensor, which ranks that hold the same bits share.

32 ranks that each return all logits of a large vocabulary would write gigabytes of copies. So a rank writes a large
tensor under a name made of its digest, unless that file exists; a reader gives all of its owners the same tensor.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ..checkpoint.checkpoint import Checkpoint, TensorSpec, write_checkpoint
from ..results.from_json import from_json
from ..results.result import to_json
from .rank_report import RankReport, TensorKey

LARGE_BYTES = 1 << 20
_TENSOR = "tensor"  # the name of the only tensor in a file of its own
Tensors = dict[TensorKey, torch.Tensor]
Kept = dict[TensorKey, torch.Tensor | Path]  # a large tensor by the file that it was put into


def digest(tensor: torch.Tensor) -> str:
    """BLAKE2b of the bits of a CPU tensor of any shape and dtype, 32 hex digits; shape and dtype do not enter it."""
    return hashlib.blake2b(
        tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().data, digest_size=16
    ).hexdigest()


def as_pairs(tensors: Mapping[TensorKey, torch.Tensor]) -> tuple[dict[TensorKey, torch.Tensor], tuple[str, ...]]:
    """The tensors, of any shape and dtype, complex ones as pairs of real numbers; and the keys of these."""
    pairs = tuple(str(key) for key, x in tensors.items() if x.is_complex())
    return {key: torch.view_as_real(x) if x.is_complex() else x for key, x in tensors.items()}, pairs


def put_aside(path: Path, tensors: Tensors) -> Kept:
    """Write tensors of LARGE_BYTES and more at once, so that a rank need not hold them while it continues.

    Such a file is complete when all ranks have written their own files: the rank that made it writes its own later.

    Args:
        path: of the rank's own file.
        tensors: contiguous CPU tensors of any shape and dtype.

    Returns:
        Each tensor, or the file that it was written to.
    """
    return {key: _put(path, x) if x.nbytes >= LARGE_BYTES else x for key, x in tensors.items()}


def _put(path: Path, tensor: torch.Tensor) -> Path:
    kind = f"{str(tensor.dtype).removeprefix('torch.')}-{'x'.join(map(str, tensor.shape))}"
    file = path.with_name(f"{_shared_stem(path)}{kind}-{digest(tensor)}.safetensors")
    try:
        file.open("xb").close()  # the first rank writes, the others have nothing to add
    except FileExistsError:
        return file
    write_tensors(file, {_TENSOR: tensor}, {})
    return file


def write_output(path: Path, kept: Kept, report: RankReport) -> None:
    """Write a rank's own file: small tensors of any shape and dtype, and its report. It appears complete."""
    unfinished = path.with_suffix(".part")
    own = {str(key): value for key, value in kept.items() if isinstance(value, torch.Tensor)}
    aside = {str(key): value.name for key, value in kept.items() if isinstance(value, Path)}
    write_tensors(unfinished, own, {"aside": json.dumps(aside), "report": json.dumps(to_json(report))})
    unfinished.replace(path)


def read_output(path: Path, seen: dict[str, torch.Tensor]) -> tuple[Tensors, RankReport]:
    """Read a rank's tensors, in the shapes and dtypes written, and its report.

    `seen` holds the large tensors read so far by file name, and gets those that are read here.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {TensorKey.parse(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for name, large in json.loads(metadata["aside"]).items():
        if large not in seen:
            seen[large] = Checkpoint([path.with_name(large)]).tensor(_TENSOR)
        tensors[TensorKey.parse(name)] = seen[large]
    return tensors, from_json(RankReport, json.loads(metadata["report"]))


def remove_outputs(paths: Iterable[Path]) -> None:
    """Delete the files of a task's ranks, at least one, and the large tensors that they share."""
    for path in paths:
        path.unlink(missing_ok=True)
    for file in path.parent.glob(glob.escape(_shared_stem(path)) + "*"):
        file.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write CPU tensors of any shape and dtype as safetensors, without the library's copy of them in memory."""
    specs = [TensorSpec(name=name, shape=tuple(x.shape), dtype=x.dtype) for name, x in tensors.items()]
    write_checkpoint(path, specs, lambda spec: tensors[spec.name], metadata)


def _shared_stem(path: Path) -> str:
    """`mlp.0.d0.tp8.rank3` is one of those that share `mlp.0.d0.tp8.shared-...`."""
    return path.stem.rpartition(".")[0] + ".shared-"
