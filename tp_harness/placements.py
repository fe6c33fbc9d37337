"""The placements under their public name; they live in parallel/placements.py."""

from .parallel.placements import KVHeads, Partial, Placement, QKVHeads, Replicate, Shard, StridedShard

__all__ = ["KVHeads", "Partial", "Placement", "QKVHeads", "Replicate", "Shard", "StridedShard"]
