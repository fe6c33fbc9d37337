"""A Case that imports a file beside it, which reads the environment when that is done."""

NEIGHBOUR = """
import os
BUG = os.environ.get("BUG")
"""
# Wrong on several ranks where BUG is set.
CASE = """
import torch
from torch import nn
from tp_harness import Case, Shard, current_group
from {neighbour} import BUG

class Own(nn.Module):
    def __init__(self, size=1):
        super().__init__()
        self.up = nn.Linear(16, 32 // size)
        self.down = nn.Linear(32 // size, 16, bias=False)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))

class Sharded(Own):
    def __init__(self):
        super().__init__(current_group().size)
        self.group = current_group()

    def forward(self, x):
        y = self.group.all_reduce(super().forward(x))
        return y * 2 if BUG and self.group.size > 1 else y

CASE = Case(
    name="own", reference=Own, sharded=Sharded, inputs=lambda g: (torch.randn(2, 8, 16, generator=g),),
    plan={{"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}},
)
"""
