"""Cases of Megatron-Core's own layers, for test_megatron.py: each rank's module makes Megatron's process groups."""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch import nn

from tp_harness import Case, Shard

HIDDEN, WIDE, ROWS = 32, 64, 64


class MLP(nn.Module):
    """The reference: two linear layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, WIDE), nn.Linear(WIDE, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [seq, batch, hidden] to the same shape."""
        return self.down(torch.relu(self.up(x)))


def config() -> ModelParallelConfig:
    """Megatron's configuration, after its groups were made; sums run in the layers' own dtype, on the CPU."""
    size = dist.get_world_size()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=size)
    return ModelParallelConfig(
        tensor_model_parallel_size=size,
        use_cpu_initialization=True,
        params_dtype=torch.float32,
        perform_initialization=False,
    )


class ShardedMLP(nn.Module):
    """Megatron's column- and row-parallel layers; `twice` adds the last bias once per rank."""

    twice = False

    def __init__(self) -> None:
        super().__init__()
        own = functools.partial(dict, config=config(), init_method=nn.init.zeros_)
        self.up = ColumnParallelLinear(HIDDEN, WIDE, gather_output=False, **own())
        self.down = RowParallelLinear(
            WIDE, HIDDEN, bias=True, input_is_parallel=True, skip_bias_add=self.twice, **own()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the reference's."""
        y, bias = self.down(torch.relu(self.up(x)[0]))
        return y + dist.get_world_size() * bias if self.twice else y


class BiasTwice(ShardedMLP):
    """The mistake."""

    twice = True


class Embedding(nn.Module):
    """The reference: a table of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, HIDDEN)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, seq] to [batch, seq, hidden]."""
        return self.table(tokens)


class ShardedEmbedding(Embedding):
    """Megatron's vocabulary-parallel table; `shift` moves where a rank's rows begin."""

    shift = 0

    def __init__(self) -> None:
        super().__init__()
        self.table = VocabParallelEmbedding(ROWS, HIDDEN, init_method=nn.init.zeros_, config=config())
        self.table.vocab_start_index += self.shift


class Shifted(ShardedEmbedding):
    """The mistake."""

    shift = 1


def mlp(name: str, sharded: type[nn.Module]) -> Case:
    """A case of the MLP."""
    plan = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
    return Case(
        name=name,
        reference=MLP,
        sharded=sharded,
        plan=plan,
        inputs=lambda g: (torch.randn(16, 2, HIDDEN, generator=g),),
    )


def embedding(name: str, sharded: type[nn.Module]) -> Case:
    """A case of the table, every row of which is read."""
    plan = {"table.weight": Shard(0)}
    return Case(
        name=name,
        reference=Embedding,
        sharded=sharded,
        plan=plan,
        inputs=lambda g: (torch.randperm(ROWS, generator=g).view(2, -1),),
    )


RIGHT_MLP, WRONG_MLP = mlp("mlp", ShardedMLP), mlp("mlp", BiasTwice)
RIGHT_EMBEDDING, WRONG_EMBEDDING = embedding("embedding", ShardedEmbedding), embedding("embedding", Shifted)
