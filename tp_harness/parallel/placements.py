"""All placements, under one name: how one full tensor becomes one shard per rank, and back.

The words are torch.distributed.tensor's: Shard, Replicate, Partial; the others say what attention and fused matrices
need.
"""

from .basic_placements import EVEN, Partial, Replicate, Shard
from .fused_placements import FusedShard, StridedShard
from .head_placements import KVHeads, QKVHeads
from .placement import Placement, PlacementError, shape_only
from .same_bits import ReplicaError, check_same_bits, same_bits

__all__ = [
    "EVEN",
    "FusedShard",
    "KVHeads",
    "Partial",
    "Placement",
    "PlacementError",
    "QKVHeads",
    "ReplicaError",
    "Replicate",
    "Shard",
    "StridedShard",
    "check_same_bits",
    "same_bits",
    "shape_only",
]
