"""Vocabulary-parallel embedding and unembedding."""

from __future__ import annotations

import torch
from torch import nn

from ....parallel.group import Group, current_group
from ....parallel.nxd_attributes import mark
from ....parallel.placements import Partial, Placement, Shard
from ..config import InferenceConfig, ModelConfig
from .layers import initialise, linear, parameter
from .sequence import gathered, placement, summed


class NeuronGPTOSSEmbedding(nn.Module):
    """Token ids to rows of a table [vocab, hidden] whose rows are shared out over the ranks.

    A rank gives zeros for tokens it does not hold; one all_reduce (sequence parallel: reduce_scatter) puts every row in
    place, exactly.
    """

    vocab_start: torch.Tensor

    def __init__(
        self,
        config: InferenceConfig,
        *,
        group: Group | None = None,
        weight_init_value: float | None = None,
    ) -> None:
        super().__init__()
        self.group = group or current_group()
        self.dtype = config.neuron_config.torch_dtype
        self.sequence_parallel = config.cuts_sequence(self.group.size)
        local = config.vocab_size // self.group.size
        self.weight = parameter(local, config.hidden_size, dtype=self.dtype)
        # Data on the device rather than a Python number: a rank folded into a traced graph would be every rank's.
        # One element and not a scalar, which torch-xla folds where it is 0 or 1.
        self.register_buffer("vocab_start", torch.tensor([self.group.rank * local], device="cpu"), persistent=False)
        self.partial, self.total = nn.Identity(), nn.Identity()
        mark(self, self.plan(config), self.group.size)
        initialise(self, weight_init_value)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placement]:
        """Parameter name -> placement."""
        return {"weight": Shard(0)}

    @staticmethod
    def taps(config: ModelConfig) -> dict[str, Placement]:
        """Intermediate tensor -> placement, in order of execution."""
        return {"partial": Partial(), "total": placement(config)}

    def forward(self, tokens: torch.Tensor, *, sequence_parallel: bool | None = None) -> torch.Tensor:
        """(batch, seq) or (n_tokens,) int64 ids to (..., hidden) in the configured dtype.

        Sequence parallel, of (batch, seq) only this rank's tokens come out; None: where the plan says so and the
        configured sequence divides.
        """
        is_cut = self.sequence_parallel if sequence_parallel is None else sequence_parallel
        local = tokens - self.vocab_start
        held = (local >= 0) & (local < len(self.weight))
        rows = self.weight[local.clamp(0, len(self.weight) - 1)]
        rows = torch.where(held[..., None], rows, torch.zeros_like(rows))
        wide = torch.promote_types(self.dtype, torch.float32)  # the table may have fewer digits
        total = self.total(summed(self.group, self.partial(rows).to(wide), is_cut))
        return total.to(self.dtype)


class NeuronGPTOSSUnembedding(nn.Module):
    """Hidden states to logits; each rank computes its share of the vocabulary.

    With `gather_output` an all_gather gives every rank all logits; without, a rank returns its own.
    """

    def __init__(
        self,
        config: InferenceConfig,
        *,
        gather_output: bool = False,
        group: Group | None = None,
        weight_init_value: float | None = None,
    ) -> None:
        super().__init__()
        self.group = group or current_group()
        self.gather_output = gather_output
        self.sequence_parallel = config.cuts_sequence(self.group.size)
        local = config.vocab_size // self.group.size
        dtype = config.neuron_config.torch_dtype
        self.weight = parameter(local, config.hidden_size, dtype=dtype)
        self.logits = nn.Identity()
        mark(self, self.plan(config), self.group.size)
        initialise(self, weight_init_value)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placement]:
        """Parameter name -> placement."""
        return {"weight": Shard(0)}

    @staticmethod
    def taps(config: ModelConfig) -> dict[str, Placement]:
        """Intermediate tensor -> placement, in order of execution."""
        del config
        return {"logits": Shard(-1)}

    def forward(self, hidden_states: torch.Tensor, *, sequence_parallel: bool | None = None) -> torch.Tensor:
        """(..., hidden) to (..., vocab), or this rank's (..., vocab / size) when not gathered; same dtype out.

        Sequence parallel, (batch, seq / size, hidden) are this rank's tokens, and the logits those of all; None: where
        the plan says so and the configured sequence divides.
        """
        is_cut = self.sequence_parallel if sequence_parallel is None else sequence_parallel
        logits = self.logits(self._logits(gathered(self.group, hidden_states, is_cut)))
        return self.group.all_gather(logits, dim=-1) if self.gather_output else logits

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return linear(hidden_states, self.weight)
