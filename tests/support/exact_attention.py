"""Cases of attention written otherwise: online softmax in chunks, and ring attention; and of modules of DTensors.

    tp-harness verify --case tests/support/exact_attention.py:RING --dtype exact --tp 1,2,4

`RING_0` and so on have one mistake each: `MISTAKES` has the first tensor that each makes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tp_harness import Case, Replicate, Shard
from tp_harness.parallel.group import Group

HIDDEN, HEADS, DIM, CHUNK = 20, 4, 5, 3


class Attention(nn.Module):
    """Causal attention of 4 heads, (batch, seq, 20) in and out."""

    scale = DIM**-0.5

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HEADS * DIM), nn.Linear(HEADS * DIM, HIDDEN)
        self.heads, self.attended = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project, attend, project."""
        batch, seq, _ = x.shape
        qkv = self.heads(self.qkv(x).view(batch, seq, 3, HEADS, DIM)).permute(2, 0, 3, 1, 4)
        y = self.attended(self.attend(*qkv).transpose(1, 2))
        return self.out(y.reshape(batch, seq, -1))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(batch, heads, seq, dim) of each, by torch's own function."""
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def absorb(self, state: tuple, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> tuple:
        """Go on from a state (the maximum, the sum and the weighted values so far) with more keys and values."""
        top, total, summed = state
        scores = (q @ k.mT * self.scale).masked_fill(~seen, -torch.inf)
        new = self.new_top(top, scores.amax(-1, keepdim=True))
        safe = new.masked_fill(new == -torch.inf, 0.0)
        kept, weights = torch.exp(top - safe), torch.exp(scores - safe)
        return new, total * self.kept(kept) + weights.sum(-1, keepdim=True), summed * kept + weights @ v

    def new_top(self, top: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The maximum of all scores so far."""
        return torch.maximum(top, own)

    def kept(self, share: torch.Tensor) -> torch.Tensor:
        """By what the sum so far is multiplied when the maximum rises."""
        return share

    def empty(self, q: torch.Tensor) -> tuple:
        """The state before the first key."""
        return q.new_full((*q.shape[:-1], 1), -torch.inf), q.new_zeros((*q.shape[:-1], 1)), torch.zeros_like(q)


class Flash(Attention):
    """Keys and values in chunks of 3, the division last."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """A state that each chunk goes on from."""
        state, rows = self.empty(q), torch.arange(q.shape[2]).unsqueeze(1)
        for start in range(0, q.shape[2], CHUNK):
            part = slice(start, start + CHUNK)
            columns = torch.arange(start, min(start + CHUNK, q.shape[2]))
            state = self.absorb(state, q, k[:, :, part], v[:, :, part], self.seen(rows, columns))
        return state[2] / state[1]

    def seen(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Which keys a query sees."""
        return columns <= rows


class Stale(Flash):
    """The sum so far is not scaled when the maximum rises."""

    def kept(self, share: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(share)


class Early(Flash):
    """The last column of each chunk is left out."""

    def seen(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return (columns <= rows) & ((columns % CHUNK != CHUNK - 1) | (columns == rows))


class Scaled(Flash):
    """1 / 128 too much."""

    scale = DIM**-0.5 * (1 + 1 / 128)


class Ring(Flash):
    """Each rank has its own tokens; keys and values go round from rank to rank."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As many steps as there are ranks; even ones send first."""
        n, rank, tokens = dist.get_world_size(), dist.get_rank(), q.shape[2]
        state, own = self.empty(q), torch.arange(tokens)
        held = torch.stack((k, v))
        for step in range(n):
            source = self.source(rank, step, n)
            seen = self.seen((rank * tokens + own).unsqueeze(1), source * tokens + own)
            state = self.absorb(state, q, held[0], held[1], seen)
            if step < n - 1:
                held = self.next(held, rank, n)
        return state[2] / state[1]

    def source(self, rank: int, step: int, n: int) -> int:
        """Whose keys are here."""
        return (rank - step) % n

    def next(self, held: torch.Tensor, rank: int, n: int) -> torch.Tensor:
        """What the rank before this one had."""
        came = torch.empty_like(held)
        both = [lambda: dist.send(held, (rank + 1) % n), lambda: dist.recv(came, (rank - 1) % n)]
        for act in both if rank % 2 == 0 else both[::-1]:
            act()
        return came


class Posted(Ring):
    """The same with messages that are posted together and waited for."""

    def next(self, held: torch.Tensor, rank: int, n: int) -> torch.Tensor:
        came = torch.empty_like(held)
        both = (dist.isend, held, (rank + 1) % n), (dist.irecv, came, (rank - 1) % n)
        for work in dist.batch_isend_irecv([dist.P2POp(*message) for message in both]):
            work.wait()
        return came


class Gathered(Ring):
    """The same with all keys and values at once, by one all_gather."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The parts of all ranks, in the ring's order."""
        n, rank, tokens = dist.get_world_size(), dist.get_rank(), q.shape[2]
        held = torch.stack((k, v))
        parts = [torch.empty_like(held) for _ in range(n)]
        dist.all_gather(parts, held)
        state, own = self.empty(q), torch.arange(tokens)
        for source, (key, value) in enumerate(parts):
            seen = self.seen((rank * tokens + own).unsqueeze(1), source * tokens + own)
            state = self.absorb(state, q, key, value, seen)
        return state[2] / state[1]


class OtherWay(Ring):
    """Takes the keys for those of the ranks behind."""

    def source(self, rank: int, step: int, n: int) -> int:
        return (rank + 1 - step) % n


class Standing(Ring):
    """The last rank goes on with its own keys."""

    def next(self, held: torch.Tensor, rank: int, n: int) -> torch.Tensor:
        came = super().next(held, rank, n)
        return held if rank == n - 1 else came


class StaleRing(Ring, Stale):
    """The sum so far is not scaled when the maximum rises."""


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.hidden, self.down = nn.Linear(HIDDEN, 36), nn.Identity(), nn.Linear(36, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, 20) in and out."""
        return self.norm(x + self.down(self.hidden(nn.functional.gelu(self.up(x)))))


class Parallel(MLP):
    """The same as torch's own tensor parallelism makes it."""

    def __init__(self) -> None:
        super().__init__()
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        parallelize_module(self, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def tanh_gelu(module: Parallel, group: Group) -> None:
    """GELU by its approximation."""
    module.forward = lambda x: module.norm(  # type: ignore[method-assign]
        x + module.down(module.hidden(nn.functional.gelu(module.up(x), approximate="tanh")))
    )


def rolled(name: str) -> Callable[[nn.Module, Group], None]:
    """The last rank's part of a parameter is rolled by one."""

    def spoil(module: nn.Module, group: Group) -> None:
        if group.rank == group.size - 1:
            own = module.get_parameter(name).to_local()
            with torch.no_grad():
                own.copy_(own.roll(1, 0))

    return spoil


def eps(module: Parallel, group: Group) -> None:
    """Twice the epsilon of the norm."""
    module.norm.eps *= 2


def inputs(generator: torch.Generator) -> tuple[torch.Tensor]:
    """(batch, seq, hidden)"""
    return (torch.randn(2, 8, HIDDEN, generator=generator),)


def attention(sharded: Callable[[], nn.Module], **fields: object) -> Case:
    """A Case against torch's own attention."""
    cut = Replicate() if fields.get("replicated") else Shard(1)
    taps = {"heads": cut, "attended": cut}
    placed = {"output": cut, "input_placements": (cut,), "taps": taps}
    return Case(name="attention", reference=Attention, sharded=sharded, inputs=inputs, **placed, **fields)


flash, ring = partial(attention, replicated=True), attention
dtensor = partial(Case, name="mlp", reference=MLP, sharded=Parallel, inputs=inputs, taps={"hidden": Shard(-1)})

FLASH, DTENSOR = flash(Flash), dtensor()
RING, POSTED, GATHERED = ring(Ring), ring(Posted), ring(Gathered)
FLASH_0, FLASH_1, FLASH_2 = flash(Stale), flash(Early), flash(Scaled)
RING_0, RING_1, RING_2 = ring(OtherWay), ring(Standing), ring(StaleRing)
DTENSOR_0, DTENSOR_1, DTENSOR_2 = (replace(DTENSOR, edit=edit) for edit in (tanh_gelu, rolled("up.bias"), eps))
MISTAKES = {
    **{f"{kind}_{number}": "attended" for kind in ("FLASH", "RING") for number in range(3)},
    **{"DTENSOR_0": "hidden", "DTENSOR_1": "hidden", "DTENSOR_2": "output.0"},
}
