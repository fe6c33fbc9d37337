"""Known mistakes in own attention modules, which their outputs and the plan's key and value heads tell."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import Patch, explained
from torch import nn

from tp_harness.case.case import Case
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import KVHeads, Placement, QKVHeads, Shard

HEADS, KV, DIM, HIDDEN, TP = 16, 4, 6, 20, 2


class Attention(nn.Module):
    """Causal attention with sinks; `fused` or separate projections."""

    fused = False

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.heads, self.kv = HEADS // self.group.size, KV // self.group.size
        rows = self.heads * DIM, self.kv * DIM, self.kv * DIM
        if self.fused:
            self.qkv = nn.Linear(HIDDEN, sum(rows))
        else:
            self.q, self.k, self.v = (nn.Linear(HIDDEN, n) for n in rows)
        self.sinks, self.out = nn.Parameter(torch.empty(self.heads)), nn.Linear(rows[0], HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused = self.qkv(x) if self.fused else torch.cat((self.q(x), self.k(x), self.v(x)), -1)
        heads = fused.unflatten(-1, (-1, DIM)).transpose(-2, -3)
        q, k, v = heads.split((self.heads, self.kv, self.kv), -3)
        k, v = (self.shared_out(y) for y in (k, v))
        scores = (q @ k.mT * self.scale()).masked_fill(self.unseen(x.shape[-2]), -torch.inf)
        sinks = self.sinks[:, None, None].expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat((scores, sinks), -1), -1)[..., :-1]
        return self.group.all_reduce(self.out((weights @ v).transpose(-2, -3).flatten(-2)))

    def shared_out(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(self.heads // self.kv, -3)

    def scale(self) -> float:
        return 1 / sqrt(DIM)

    def unseen(self, tokens: int) -> torch.Tensor:
        return torch.ones(tokens, tokens, dtype=torch.bool).triu(1)


class Fused(Attention):
    fused = True


APART: dict[str, Placement] = {
    **{f"q.{name}": Shard(0, unit=DIM) for name in ("weight", "bias")},
    **{f"{kv}.{name}": KVHeads(0, KV, unit=DIM) for kv in "kv" for name in ("weight", "bias")},
}
AS_ONE: dict[str, Placement] = {f"qkv.{name}": QKVHeads(HEADS, KV, DIM) for name in ("weight", "bias")}
TILED = {"shared_out": lambda m, y: y.repeat(1, m.heads // m.kv, 1, 1)}
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "kv-tiled": (TILED, "kv heads in turn", "take its 2 key and value heads in turn"),
    "scale-left-out": ({"scale": lambda m: 1.0}, "scores scaled", "are sqrt(head_dim) = 2.449 times"),
    "scaled-twice": ({"scale": lambda m: 1 / DIM}, "scores scaled", "are 1 / sqrt(head_dim) = 0.4082 times"),
    "scale-of-a-shard": ({"scale": lambda m: sqrt(TP / DIM)}, "scores scaled", "are sqrt(tp) = 1.414 times"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("module", [Attention, Fused])
def test_a_mistake_in_an_own_attention_is_named(
    tmp_path: Path, monkeypatch: Patch, module: type[Attention], name: str
) -> None:
    wrong, cause, text = MISTAKES[name]
    [named] = diagnosis(tmp_path, monkeypatch, module, wrong)
    assert (named.name, text in named.sentence) == (cause, True), named.sentence


class Viewed(nn.Module):
    """Attention whose plan says nothing of heads: what the module views its projections as does."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.heads, self.kv = HEADS // self.group.size, KV // self.group.size
        self.q, self.out = nn.Linear(HIDDEN, self.heads * DIM), nn.Linear(self.heads * DIM, HIDDEN, bias=False)
        self.k, self.v = (nn.Linear(HIDDEN, self.kv * DIM) for _ in range(2))
        self.context, self.norm = nn.Identity(), nn.Parameter(torch.empty(DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).view(*x.shape[:2], self.heads, DIM).transpose(1, 2)
        k, v = (p(x).view(*x.shape[:2], self.kv, DIM).transpose(1, 2) for p in (self.k, self.v))
        q = q * torch.rsqrt(q.square().mean(-1, keepdim=True) + 1e-6) * self.norm
        k, v = self.shared_out(k), self.shared_out(v)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale())
        return self.group.all_reduce(self.out(self.context(y.transpose(1, 2).flatten(2))))

    def shared_out(self, y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(self.heads // self.kv, 1)

    def scale(self) -> float:
        return 1 / sqrt(DIM)


VIEWED: dict[str, Placement] = {f"{p}.{name}": Shard(0) for p in "qkv" for name in ("weight", "bias")}
SLIPS: dict[str, tuple[dict[str, Any], dict[str, Placement], str, str]] = {
    "kv-tiled": (TILED, {}, "kv heads in turn", "take its 2 key and value heads in turn"),
    "kv-tiled-and-tapped": (TILED, {"context": Shard(-1)}, "kv heads in turn", "key and value heads in turn"),
    "scale-of-local-heads": (
        {"scale": lambda m: m.heads**-0.5 if m.group.size > 1 else 1 / sqrt(DIM)}, {},
        "scores scaled", "are sqrt(head_dim / local heads) = 0.866 times",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_a_plan_need_not_speak_of_heads(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    wrong, taps, cause, text = SLIPS[name]
    case = Case(
        name="own",
        reference=Viewed,
        sharded=Viewed,
        inputs=lambda generator: (torch.randn(2, 9, HIDDEN, generator=generator),),
        plan=VIEWED | {"out.weight": Shard(1)},
        taps=taps,
    )
    slips = lambda patch: [patch.setattr(Viewed, method, slip) for method, slip in wrong.items()]  # noqa: E731
    result = explained(tmp_path, monkeypatch, case, TP, slips)
    assert result.first_divergence is not None
    assert result.first_divergence.tensor == ("context" if taps else "output.0")
    [named] = result.diagnosis
    assert (named.name, text in named.sentence) == (cause, True), named.sentence


UNKNOWN: dict[str, dict[str, Any]] = {
    "scale-of-nothing": {"scale": lambda m: 0.3},
    "mask-left-out": {"unseen": lambda m, tokens: torch.zeros(tokens, tokens, dtype=torch.bool)},
    "kv-reversed": {"shared_out": lambda m, y: y.repeat_interleave(m.heads // m.kv, -3).flip(-3)},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_another_mistake_is_not_called_one_of_them(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    assert not {cause.name for cause in diagnosis(tmp_path, monkeypatch, Attention, UNKNOWN[name])} & {
        "kv heads in turn",
        "scores scaled",
    }


def diagnosis(tmp_path: Path, monkeypatch: Patch, module: type[Attention], wrong: dict[str, Any]) -> tuple[Any, ...]:
    """What is said of an attention whose ranks have these methods."""
    case = Case(
        name="own",
        reference=module,
        sharded=module,
        inputs=lambda generator: (torch.randn(2, 9, HIDDEN, generator=generator),),
        plan={**(AS_ONE if module.fused else APART), "sinks": Shard(0), "out.weight": Shard(1, unit=DIM)},
    )
    slips = lambda patch: [patch.setattr(Attention, method, slip) for method, slip in wrong.items()]  # noqa: E731
    return explained(tmp_path, monkeypatch, case, TP, slips).diagnosis
