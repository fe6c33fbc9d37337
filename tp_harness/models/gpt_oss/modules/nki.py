"""The sharded modules with their hot parts as NKI kernels: same parameters, plans, collectives and taps.

Each class replaces one method of its torch twin by a call of a kernel in `tp_harness.kernels`; `use_kernels` turns
a built module into them. On a CPU the kernels run through an interpreter of documented instruction semantics.

Not covered: the embedding's lookup, attention to a cache, and the taps `gate_up` and `activation`, which lie inside a
kernel.
"""

from __future__ import annotations

import torch
from torch import nn

from ....kernels import run
from ..config import RMS_NORM_EPS, SWIGLU_ALPHA
from .attention import NeuronGPTOSSAttentionBlock
from .embedding import NeuronGPTOSSUnembedding
from .layers import Projection, reduce_dtype
from .mlp import NeuronGPTOSSMLPBlock
from .norm import NeuronGPTOSSRMSNorm
from .rope import NeuronGPTOSSRotaryEmbedding


class NKIRMSNorm(NeuronGPTOSSRMSNorm):
    """The norm as a kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) in and out, same dtype."""
        return run("rmsnorm", x.flatten(0, -2), self.scale, eps=RMS_NORM_EPS).view(x.shape)


class NKIProjection(Projection):
    """A projection as a tiled matrix product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out) in the same dtype, bias included."""
        return _product("linear", x, self.weight, self.bias.to(x.dtype))

    def without_bias(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out) in the same dtype; whoever reduces adds the bias."""
        return _product("linear_no_bias", x, self.weight)


class NKIRotaryEmbedding(NeuronGPTOSSRotaryEmbedding):
    """The rotation as a kernel; the table stays on the host."""

    def _rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        tables = (table.expand(*x.shape[:2], 1, -1).flatten(0, 2).to(x.dtype) for table in (cos, sin))
        return run("rope", x.flatten(0, 1), *tables).view(x.shape)


class NKIAttentionBlock(NeuronGPTOSSAttentionBlock):
    """Scores, sinks, softmax and values as one kernel, for consecutive positions; with a cache, without the kernel."""

    def _attend(
        self,
        q_BSKMD: torch.Tensor,
        k_BTKD: torch.Tensor,
        v_BTKD: torch.Tensor,
        queries_BS: torch.Tensor,
        keys_BT: torch.Tensor,
    ) -> torch.Tensor:
        if queries_BS.shape != keys_BT.shape:
            return super()._attend(q_BSKMD, k_BTKD, v_BTKD, queries_BS, keys_BT)
        if not bool((queries_BS.diff(dim=1) == 1).all()):
            raise ValueError(f"the attention kernel needs consecutive positions in each row; they are {queries_BS}")
        sinks = self.sinks.to(q_BSKMD.dtype)
        scale, query = self.softmax_scale, q_BSKMD.flatten(2, 3)
        return run("attention", query, k_BTKD, v_BTKD, sinks, scale=scale, window=self.window)


class NKIMLPBlock(NeuronGPTOSSMLPBlock):
    """Router and experts as one kernel each."""

    def _weights(self, t_TH: torch.Tensor) -> torch.Tensor:
        """The kernel's own weights where its choice stands; a replaced choice is weighted from its logits."""
        weight, bias = self.gate.weight.to(t_TH.dtype), self.gate.bias.to(t_TH.dtype)
        experts_Tk, _, affinities_TE, logits_TE = run("router", t_TH, weight, bias, top_k=self.experts_per_token)
        logits_TE = self.router_logits(logits_TE)
        chosen_Tk = self.chosen(experts_Tk)
        if torch.equal(chosen_Tk, experts_Tk):
            return affinities_TE
        weights_Tk = torch.softmax(logits_TE.gather(-1, chosen_Tk), dim=-1)
        return torch.zeros_like(logits_TE).scatter(-1, chosen_Tk, weights_Tk)

    def _experts(self, t_TH: torch.Tensor, weights_TE: torch.Tensor) -> torch.Tensor:
        """This rank's summand; the down bias is added after the reduction, so its share here is 0."""
        weights = (self.mlp1_weight, self.mlp1_bias, self.mlp2_weight, self.mlp2_bias)
        cast = (parameter.to(t_TH.dtype) for parameter in weights)
        options = {"alpha": SWIGLU_ALPHA, "limit": self.limit, "bias_share": 0.0}
        partial_TH = run("expert_mlp", t_TH, weights_TE.float(), *cast, **options)
        return partial_TH.to(reduce_dtype(t_TH))


class NKIUnembedding(NeuronGPTOSSUnembedding):
    """The logits as a tiled matrix product."""

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _product("linear_no_bias", hidden_states, self.weight)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    NeuronGPTOSSRMSNorm: NKIRMSNorm,
    Projection: NKIProjection,
    NeuronGPTOSSRotaryEmbedding: NKIRotaryEmbedding,
    NeuronGPTOSSAttentionBlock: NKIAttentionBlock,
    NeuronGPTOSSMLPBlock: NKIMLPBlock,
    NeuronGPTOSSUnembedding: NKIUnembedding,
}


def use_kernels(module: nn.Module) -> bool:
    """Have every part that has a kernel run by it, in place; whether there was any."""
    found = [child for child in module.modules() if type(child) in _CLASSES]
    for child in found:
        child.__class__ = _CLASSES[type(child)]  # its parameters, buffers and hooks stay the objects that they are
    return bool(found)


def _product(kernel: str, x: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
    flat: torch.Tensor = run(kernel, x.flatten(0, -2), weight.to(x.dtype), *bias)
    return flat.view(*x.shape[:-1], len(weight))
