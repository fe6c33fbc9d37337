"""What the ranks of a run left, compared with what those of another run left: by bits and by distance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch

from ..judge.distance import without_constants
from ..judge.gather import RankOutput
from ..ranks.rank_files import digest
from ..ranks.rank_report import TensorKey


@dataclass(frozen=True)
class Left:
    """What ranks left that is judged: a digest of all tensors and schedules, and the outputs, any shape and dtype."""

    digest: str
    outputs: Mapping[tuple[int, TensorKey], torch.Tensor]

    @staticmethod
    def of(ranks: Mapping[int, RankOutput], dtype: str, *, outputs: bool) -> Left:
        """What these ranks (rank -> what it left) left in `dtype`; the outputs are kept only if asked for."""
        keys = {
            rank: [TensorKey(dtype, "locked", name) for name in left.report.runs[dtype].results]
            for rank, left in ranks.items()
        }
        kept = {(rank, key): ranks[rank].tensors[key] for rank, own in keys.items() for key in own}
        return Left(_digest(ranks, dtype), kept if outputs else {})

    def is_as(self, other: Left) -> bool:
        """Whether no bit differs."""
        return self.digest == other.digest

    def off(self, other: Left) -> float:
        """The largest relative L2 difference of a rank's output; infinite if one is missing or has another shape."""
        if any(self.outputs.get(name, torch.empty(0)).shape != x.shape for name, x in other.outputs.items()):
            return float("inf")
        pairs = [without_constants(x.double(), self.outputs[name].double())[::-1] for name, x in other.outputs.items()]
        return max(((x - y).norm() / y.norm().clamp(min=1e-300)).item() for x, y in pairs)


def _digest(ranks: Mapping[int, RankOutput], dtype: str) -> str:
    """Of every tensor of the run that is judged, and every rank's schedule."""
    total, of_tensor = hashlib.blake2b(digest_size=16), dict[int, str]()
    for rank in sorted(ranks):
        for key, tensor in sorted(ranks[rank].tensors.items(), key=itemgetter(0)):
            if (key.dtype, key.variant) == (dtype, "locked"):
                if id(tensor) not in of_tensor:  # ranks that hold the same bits share a large tensor
                    of_tensor[id(tensor)] = digest(tensor)
                total.update(f"{rank} {key} {of_tensor[id(tensor)]}".encode())
        total.update(" ".join(map(str, ranks[rank].report.runs[dtype].collectives)).encode())
    return total.hexdigest()
