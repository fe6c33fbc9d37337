"""Random inputs of the kernels at the sizes of a model's rank, drawn so that mistakes show.

Scales and sinks vary, biases are not zero, activations reach the clamps, sinks reach from -20 to 100.
"""

from __future__ import annotations

from typing import Any

import torch

Inputs = dict[str, Any]


class Draw:
    """A seeded source of random tensors of one dtype."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        """Seed a generator of its own: nothing global is touched."""
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def normal(self, *shape: int, spread: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        """Return normal numbers of that shape, in the draw's dtype; `spread` is their standard deviation."""
        return (torch.randn(*shape, generator=self._generator) * spread + mean).to(self._dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Return float32 numbers of that shape, uniform from `low` to `high`."""
        return torch.rand(*shape, generator=self._generator) * (high - low) + low


def make(name: str, sizes: dict[str, int], model: Any, *, seed: int, dtype: torch.dtype) -> Inputs:
    """Return the arguments of the kernel `name`, tensors in `dtype`, for the sizes (elements) of its symbols.

    Raises:
        KeyError: no kernel has that name.
    """
    draw = Draw(seed, dtype)
    makers = {
        "rmsnorm": _rmsnorm,
        "rope": _rope,
        "attention": _attention,
        "router": _router,
        "expert_mlp": _expert_mlp,
        "linear": _linear,
        "linear_no_bias": _linear_no_bias,
    }
    return makers[name](draw, sizes, model)


def _rmsnorm(draw: Draw, sizes: dict[str, int], model: Any) -> Inputs:
    tokens, hidden = sizes["T"], sizes["H"]
    # Rows of very different size: a mean over the wrong axis, or an eps in the wrong place, shows.
    size = torch.logspace(-2, 2, tokens)[:, None]
    x = (draw.normal(tokens, hidden).float() * size).to(draw.normal(1).dtype)
    return {"x": x, "scale": draw.normal(hidden, spread=0.5, mean=1.0), "eps": model.rms_norm_eps}


def _rope(draw: Draw, sizes: dict[str, int], model: Any) -> Inputs:
    tokens, half = sizes["T"], sizes["D/2"]
    angle = draw.uniform(tokens, half, low=-20.0, high=20.0)
    return {
        "x": draw.normal(tokens, sizes["N"], sizes["D"]),
        "cos": 1.35 * angle.cos(),
        "sin": 1.35 * angle.sin(),
    }


def _attention(draw: Draw, sizes: dict[str, int], model: Any) -> Inputs:
    batch, length, queries, groups, head = (sizes[symbol] for symbol in ("B", "S", "Q", "G", "D"))
    # One head with a sink that takes everything, one with a sink that takes nothing, others between.
    sinks = torch.linspace(-20.0, 10.0, queries).to(draw.normal(1).dtype)
    if queries > 1:
        sinks[queries // 2] = 100.0
    return {
        "q": draw.normal(batch, length, queries, head, spread=1.5),
        "k": draw.normal(batch, length, groups, head, spread=1.5),
        "v": draw.normal(batch, length, groups, head),
        "sinks": sinks,
        "scale": head**-0.5,
        "window": model.sliding_window,
    }


def _router(draw: Draw, sizes: dict[str, int], model: Any) -> Inputs:
    tokens, hidden, experts = sizes["T"], sizes["H"], sizes["E"]
    return {
        "x": draw.normal(tokens, hidden),
        "weight": draw.normal(experts, hidden, spread=2.0 * hidden**-0.5),
        "bias": draw.normal(experts),
        "top_k": model.experts_per_token,
    }


def _expert_mlp(draw: Draw, sizes: dict[str, int], model: Any) -> Inputs:
    tokens, hidden, experts, size = (sizes[symbol] for symbol in ("T", "H", "E", "I"))
    logits = draw.uniform(tokens, experts, low=-2.0, high=2.0)
    values, chosen = logits.topk(min(model.experts_per_token, experts), dim=-1)
    affinities = torch.zeros(tokens, experts).scatter_(1, chosen, values.softmax(dim=-1))
    return {
        "x": draw.normal(tokens, hidden),
        "affinities": affinities,
        # Spread 5: about one value in six is beyond the clamp of 7.
        "mlp1_weight": draw.normal(experts, 2 * size, hidden, spread=5.0 * hidden**-0.5),
        "mlp1_bias": draw.normal(experts, 2 * size),
        "mlp2_weight": draw.normal(experts, hidden, size, spread=size**-0.5),
        "mlp2_bias": draw.normal(experts, hidden),
        "alpha": model.swiglu_alpha,
        "limit": model.swiglu_limit,
        "bias_share": 0.125,
    }


def _linear(draw: Draw, sizes: dict[str, int], model: Any) -> Inputs:
    return {**_linear_no_bias(draw, sizes, model), "bias": draw.normal(sizes["N"])}


def _linear_no_bias(draw: Draw, sizes: dict[str, int], model: Any) -> Inputs:
    tokens, inputs, outputs = sizes["T"], sizes["K"], sizes["N"]
    return {"x": draw.normal(tokens, inputs), "weight": draw.normal(outputs, inputs, spread=inputs**-0.5)}
