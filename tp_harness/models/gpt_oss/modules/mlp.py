"""Mixture of experts with every expert cut along its intermediate dimension, or experts shared out (plans "ep").

Shape suffixes: B batch, S sequence, T tokens (B S), P tokens that chose one expert, H hidden, E experts,
k experts per token.
"""

from __future__ import annotations

import torch
from torch import nn

from ....parallel.group import Group, current_group
from ....parallel.mesh import mesh_of
from ....parallel.nxd_attributes import mark
from ....parallel.placements import Partial, Placement, Replicate, Shard
from ..config import SWIGLU_ALPHA, InferenceConfig, ModelConfig
from .expert_parallel import LocalExperts, Placed, combined, dispatched
from .layers import CastBuffer, Projection, initialise, linear, parameter, reduce_dtype, sigmoid, softmax
from .norm import NeuronGPTOSSRMSNorm
from .sequence import OwnTokens, gathered, placement, summed


class NeuronGPTOSSMLPBlock(nn.Module):
    """x + moe(norm(x)): router replicated; gate/up rows (kept in pairs) and down columns sharded.

    Each rank adds up its slice of the chosen experts, weighted by the router. One all_reduce (sequence parallel:
    reduce_scatter) makes the sum whole; the down biases, weighted too, are added after it, once. Partial sums are kept
    in float32 or wider. The router has all tokens on every rank.
    """

    def __init__(
        self,
        config: InferenceConfig,
        layer_idx: int = 0,
        *,
        group: Group | None = None,
        weight_init_value: float | None = None,
    ) -> None:
        super().__init__()
        del layer_idx  # all layers are alike; the argument lets callers treat every block the same
        self.group = group or current_group()
        self.num_experts, self.experts_per_token = config.num_experts, config.experts_per_token
        self.limit = config.swiglu_limit
        self.sequence_parallel = config.cuts_sequence(self.group.size)
        dtype, hidden = config.neuron_config.torch_dtype, config.hidden_size
        mesh = mesh_of(config.mesh(self.group.size), self.group)
        self.tp, self.ep = mesh["tp"], mesh["ep"] if "ep" in mesh.axes else Group()
        experts, local = self.num_experts // self.ep.size, config.intermediate_size // self.tp.size
        self.exchanges = config.plan == "ep"
        self.norm = NeuronGPTOSSRMSNorm(config)
        self.gate = Projection(self.num_experts, hidden, dtype=dtype)
        self.mlp1_weight = parameter(experts, 2 * local, hidden, dtype=dtype)
        self.mlp1_bias = parameter(experts, 2 * local, dtype=dtype)
        self.mlp2_weight = parameter(experts, hidden, local, dtype=dtype)
        self.mlp2_bias = parameter(self.num_experts, hidden, dtype=dtype)
        shares_tokens = config.plan != "tp"
        self.own_tokens, self.row_tokens = OwnTokens(self.group, shares_tokens), OwnTokens(self.ep, shares_tokens)
        self.local_experts = LocalExperts(self.ep, experts)
        self.router_logits, self.chosen, self.gate_up, self.activation = (nn.Identity() for _ in range(4))
        self.partial, self.total, self.combined, self.residual = (nn.Identity() for _ in range(4))
        mark(self, {name: at for name, at in self.plan(config).items() if isinstance(at, Placement)}, self.group.size)
        initialise(self, weight_init_value)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placed]:
        """Parameter name -> placement; of shared out experts, along each axis of the mesh."""
        cut = {"mlp1_weight": Shard(1, unit=2), "mlp1_bias": Shard(1, unit=2), "mlp2_weight": Shard(2)}
        has_ep = isinstance(config, InferenceConfig) and "ep" in config.mesh(1)
        experts = {name: {"ep": Shard(0), "tp": along_tp} if has_ep else along_tp for name, along_tp in cut.items()}
        whole = dict.fromkeys(("norm.scale", "gate.weight", "gate.bias", "mlp2_bias"), Replicate())
        return {**whole, **experts}

    @staticmethod
    def taps(config: ModelConfig) -> dict[str, Placement]:
        """Intermediate tensor -> placement, in order of execution; gate_up and activation per expert in turn."""
        # a rank's own experts have as many tokens as chose them, which no placement knows
        of_experts = {} if config.plan.startswith("ep") else {"gate_up": Shard(-1, unit=2), "activation": Shard(-1)}
        return {
            "norm": placement(config),
            "router_logits": Replicate(),
            "chosen": Replicate(),
            **of_experts,
            "partial": Partial(),
            "total": placement(config),
            "combined": placement(config),
            "residual": placement(config),
        }

    def forward(self, hidden_states: torch.Tensor, *, sequence_parallel: bool | None = None) -> torch.Tensor:
        """(batch, seq, hidden) or (n_tokens, hidden); same shape and dtype out.

        Sequence parallel, these are this rank's tokens; None: where the plan says so and the configured sequence
        divides.
        """
        is_cut = self.sequence_parallel if sequence_parallel is None else sequence_parallel
        x_BSH = hidden_states if hidden_states.ndim == 3 else hidden_states[None]
        t_BSH, weights_BSE = self._given(self.norm(x_BSH), is_cut)
        weights_TE = self.local_experts(weights_BSE.flatten(0, 1))
        partial_BSH = self.partial(self._experts(t_BSH.flatten(0, 1), weights_TE).view(t_BSH.shape))
        total_BSH = self.total(self._sum(partial_BSH, is_cut))
        bias_BSH = self._down_bias(self.own_tokens(weights_BSE, is_cut).to(total_BSH.dtype))
        combined_BSH = self.combined((total_BSH + bias_BSH).to(x_BSH.dtype))
        return self.residual((x_BSH + combined_BSH).view(hidden_states.shape))

    def _given(self, t_BSH: torch.Tensor, is_cut: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that this rank's experts are given, and the router's weights of all tokens, all (batch, seq, ...).

        Where tokens are exchanged, only the router's logits of all tokens are gathered.
        """
        if not (self.exchanges and is_cut):
            t_BSH = gathered(self.group, t_BSH, is_cut)
            return t_BSH, self._weights(t_BSH.flatten(0, 1)).view(*t_BSH.shape[:2], -1)
        t_BsH = gathered(self.tp, t_BSH, is_cut)
        logits_BSE = gathered(self.ep, self.gate(t_BsH), is_cut)
        weights_BSE = self._route(logits_BSE.flatten(0, 1)).view(logits_BSE.shape)
        return dispatched(self.ep, t_BsH, self.row_tokens(weights_BSE, is_cut)), weights_BSE

    def _sum(self, partial_BSH: torch.Tensor, is_cut: bool) -> torch.Tensor:
        """The sum over all ranks: of all tokens, or of this rank's own."""
        if not (self.exchanges and is_cut):
            return summed(self.group, partial_BSH, is_cut)
        return summed(self.tp, combined(self.ep, partial_BSH), is_cut)

    def _down_bias(self, weights_BSE: torch.Tensor) -> torch.Tensor:
        """The down biases, weighted by the router."""
        return weights_BSE @ self.mlp2_bias.to(weights_BSE.dtype)

    def _weights(self, t_TH: torch.Tensor) -> torch.Tensor:
        """The router's weights (tokens, experts) of normed tokens."""
        return self._route(self.gate(t_TH))

    def _route(self, logits_TE: torch.Tensor) -> torch.Tensor:
        """Router weights [tokens, experts]: softmax over the chosen experts' logits, 0 elsewhere."""
        logits_TE = self.router_logits(logits_TE)
        chosen_Tk = self.chosen(torch.topk(logits_TE, self.experts_per_token, dim=-1).indices)
        weights_Tk = softmax(logits_TE.gather(-1, chosen_Tk))
        return torch.zeros_like(logits_TE).scatter(-1, chosen_Tk, weights_Tk)

    def _experts(self, t_TH: torch.Tensor, weights_TE: torch.Tensor) -> torch.Tensor:
        """This rank's summand, [tokens, hidden] in the reduction's dtype; only chosen experts are computed.

        A compiled program has fixed shapes and cannot ask which experts were chosen: there, all are, and the weight
        of those not chosen is 0.
        """
        run = self._all_experts if t_TH.device.type == "xla" else self._chosen_experts
        return run(t_TH, weights_TE)

    def _all_experts(self, t_TH: torch.Tensor, weights_TE: torch.Tensor) -> torch.Tensor:
        total_TH = torch.zeros_like(t_TH, dtype=reduce_dtype(t_TH))
        for expert in range(len(self.mlp1_weight)):
            total_TH = total_TH + self._expert_of_all(t_TH, expert).to(total_TH.dtype) * weights_TE[:, expert, None]
        return total_TH

    def _chosen_experts(self, t_TH: torch.Tensor, weights_TE: torch.Tensor) -> torch.Tensor:
        total_TH = torch.zeros_like(t_TH, dtype=reduce_dtype(t_TH))
        cast = CastBuffer(t_TH.dtype)
        for expert in range(len(self.mlp1_weight)):
            tokens_P = weights_TE[:, expert].nonzero()[:, 0]
            if len(tokens_P):
                down_PH = self._expert(t_TH[tokens_P], expert, cast)
                weighted_PH = down_PH.to(total_TH.dtype) * weights_TE[tokens_P, expert, None]
                total_TH.index_add_(0, tokens_P, weighted_PH)
        return total_TH

    def _expert(self, t_PH: torch.Tensor, expert: int, cast: CastBuffer) -> torch.Tensor:
        """One expert's slice, without the bias that follows the reduction."""
        gate_up = cast.linear(t_PH, self.mlp1_weight[expert], self.mlp1_bias[expert])
        return cast.linear(self.activation(self._swiglu(self.gate_up(gate_up))), self.mlp2_weight[expert])

    def _expert_of_all(self, t_TH: torch.Tensor, expert: int) -> torch.Tensor:
        """The same for every token; not tapped, as a tap's rows are the tokens that chose the expert."""
        gate_up = linear(t_TH, self.mlp1_weight[expert], self.mlp1_bias[expert])
        return linear(self._swiglu(gate_up), self.mlp2_weight[expert])

    def _swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """gate sigmoid(alpha gate) (up + 1) of interleaved pairs: gate clamped above, up on both sides."""
        gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(-1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
