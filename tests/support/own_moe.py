"""A user's file: experts on a mesh of expert and tensor parallel ranks, and the same with mistakes."""

MOE = """
import dataclasses
import torch
from torch import nn
from tp_harness import Case, Partial, Shard, current_mesh

EXPERTS, HIDDEN, WIDE = 8, 16, 32

class MoE(nn.Module):
    def __init__(self, ep=1, tp=1):
        super().__init__()
        self.first, self.local = 0, EXPERTS // ep
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.zeros(self.local, HIDDEN, WIDE // tp))
        self.down = nn.Parameter(torch.zeros(self.local, WIDE // tp, HIDDEN))
        self.hidden, self.summand = nn.Identity(), nn.Identity()

    def forward(self, x):
        weights = self.gate(x).softmax(-1)[..., self.first : self.first + self.local]
        hidden = self.hidden(torch.relu(torch.einsum("bsh,ehw->bsew", x, self.up)))
        return self.sum(self.summand(torch.einsum("bsew,ewh,bse->bsh", hidden, self.down, weights)))

    def sum(self, x):
        return x

class Right(MoE):
    def __init__(self):
        mesh = current_mesh()
        super().__init__(mesh.size("ep"), mesh.size("tp"))
        self.mesh = mesh
        self.first = self.number() * self.local

    def number(self):
        return self.mesh.rank("ep")

    def sum(self, x):
        return self.mesh["ep"].all_reduce(self.mesh["tp"].all_reduce(x))

class OtherAxis(Right):
    def number(self):
        return self.mesh.rank("tp") % self.mesh.size("ep")

class OneSum(Right):
    def sum(self, x):
        return self.mesh["tp"].all_reduce(x)

def mesh(degree):
    ep = min(4, degree)
    return {"ep": ep, "tp": degree // ep}

RIGHT = Case(
    name="moe", reference=MoE, sharded=Right, mesh=mesh,
    plan={"up": {"ep": Shard(0), "tp": Shard(2)}, "down": {"tp": Shard(1), "ep": Shard(0)}},
    taps={"hidden": {"ep": Shard(2), "tp": Shard(3)}, "summand": {"ep": Partial(), "tp": Partial()}},
    inputs=lambda generator: (torch.randn(2, 8, HIDDEN, generator=generator),),
)
OTHER_AXIS, ONE_SUM = (dataclasses.replace(RIGHT, sharded=sharded) for sharded in (OtherAxis, OneSum))
"""
