"""Mistakes as changes to the real modules, for the tests of localisation and diagnosis; and what only own cases show.

Those of the registry (tp_harness/faults) are tried by test_faults.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sabotage as by
import torch
from ladder import Ladder, ThreadGroup, after_build
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tp_harness.case.case import Case
from tp_harness.models.gpt_oss import components
from tp_harness.models.gpt_oss.modules import mlp, norm, rope
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.results.result import Result, Status

GATE = ("rel_L2 of ", "worst token of ", "worst block of ")
HEADS, PAIRS = Shard(1, unit=16), Shard(1, unit=2)  # columns of the output projection; rows of gates and ups
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Fault:
    """Its number in the list of faults, what is wrong where, and what the verdict's reason begins with."""

    number: int
    component: str
    apply: by.Apply
    reason: str | tuple[str, ...] = GATE
    layer: int = 0
    shows: tuple[int, ...] = (8,)
    inert: tuple[int, ...] = ()


# fmt: off
FAULTS = {
    "mask-missing": Fault(1, "embedding", by.looks_up(lambda i, n: True)),
    "mask-one-too-many": Fault(2, "embedding", by.looks_up(lambda i, n: (i >= 0) & (i <= n)), shows=(2, 8, 32)),
    "mask-one-too-few": Fault(2, "embedding", by.looks_up(lambda i, n: (i > 0) & (i < n)), shows=(2, 8, 32)),
    "embedding-not-reduced": Fault(3, "embedding", by.reduces(lambda g, x: x), "replicas: output.0: rank 1 holds"),
    "bounds-of-rank-0": Fault(4, "embedding", by.sets("", lambda m, r, n: {"vocab_start": torch.tensor(0)})),
    "gathered-backwards": Fault(6, "transformer", by.runs(
        ThreadGroup, "_all_gather", lambda g, x, dim: torch.cat(g.exchange(x)[::-1], dim))),
    "not-gathered": Fault(7, "transformer", by.runs(ThreadGroup, "_all_gather", lambda g, x, dim: x),
        "output.0 of rank 0 has shape [2, 24, 68] instead of [2, 24, 544] (one shard as the whole)"),
    "logits-of-next-rank": Fault(6, "unembedding", by.loads(
        "weight", lambda f, r, n: Shard(0).shard(f, (r + 1) % n, n))),

    "norm-over-local-shard": Fault(8, "rmsnorm", by.norm_by(lambda x: x[..., :12].square().mean(-1, keepdim=True))),
    "norm-over-padded-width": Fault(9, "rmsnorm", by.norm_by(lambda x: x.square().sum(-1, keepdim=True) / 128)),
    "norm-eps": Fault(10, "rmsnorm", by.runs(norm, "RMS_NORM_EPS", 1e-6)),
    "norm-eps-in-a-block": Fault(10, "attention", by.runs(norm, "RMS_NORM_EPS", 1e-6)),
    "gamma-shifted": Fault(11, "attention", by.loads("norm.scale", lambda f, r, n: f.roll(1))),
    "gamma-of-one-rank": Fault(12, "rmsnorm", by.loads("scale", lambda f, r, n: f.roll(int(r == 5))),
        "replicas: output.0: rank 5 holds"),
    "gamma-of-one-rank-then-sum": Fault(12, "attention", by.loads(
        "norm.scale", lambda f, r, n: f.roll(int(r == 5))), shows=(8, 32)),
    "residual-before-sum": Fault(13, "attention", lambda patch: after_build(patch, by.add_residual)),
    "stale-shard-of-last-rank": Fault(14, "mlp", by.loads(
        "mlp2_weight", lambda f, r, n: Shard(2).shard(f, r, n) * (1 + (r == n - 1) / 128)), shows=(8, 32)),
    "variance-in-bfloat16": Fault(15, "rmsnorm", by.norm_by(
        lambda x: x.to(torch.bfloat16).square().mean(-1, keepdim=True))),

    "qkv-cut-contiguously": Fault(16, "attention", by.loads("qkv.weight", Shard(0).shard), shows=(2, 8)),
    "kv-modulo": Fault(17, "attention", by.all_of(*(
        by.loads(f"qkv.{name}", by.qkv_with(1, by.modulo)) for name in ("weight", "bias"))), shows=(32,), inert=(8,)),
    "gqa-tiled": Fault(18, "attention", by.code_of("_query_key_value", by.tiled), shows=(2,), inert=(8, 32)),
    "query-bias-of-rank-0": Fault(20, "attention", by.loads(
        "qkv.bias", by.qkv_with(0, lambda f, r, n: by.QKV.shard(f, 0, n)))),
    "key-bias-dropped": Fault(21, "attention", by.loads(
        "qkv.bias", by.qkv_with(1, lambda f, r, n: 0 * by.QKV.shard(f, r, n)))),
    "value-bias-dropped": Fault(22, "attention", by.loads(
        "qkv.bias", by.qkv_with(2, lambda f, r, n: 0 * by.QKV.shard(f, r, n)))),
    "rope-interleaved": Fault(23, "rope", by.runs(rope.NeuronGPTOSSRotaryEmbedding, "_rotate", by.interleaved)),
    "rope-offset-by-rank": Fault(24, "rope", by.sets("", by.shifted_tables)),
    # a shift of query and key alike: attention sees only their distance
    "rope-offset-in-attention": Fault(24, "attention", by.sets("rope", by.shifted_tables), shows=(), inert=(8,)),
    "rope-not-on-keys": Fault(25, "attention", by.runs(rope.NeuronGPTOSSRotaryEmbedding, "forward", by.query_only)),
    "concentration-missing": Fault(26, "attention", by.runs(rope, "concentration", lambda config: 1.0)),
    "scale-of-local-width": Fault(27, "attention", by.softmax_scale(lambda m: (96 / m.group.size) ** -0.5)),
    "scale-of-local-heads": Fault(27, "attention", by.softmax_scale(lambda m: m.local_heads**-0.5), shows=(8, 32)),
    "sinks-of-rank-0": Fault(28, "attention", by.loads("sinks", lambda f, r, n: f[: 64 // n]), shows=(2, 8, 32)),
    "sinks-missing": Fault(29, "attention", by.loads("sinks", lambda f, r, n: 0 * f[: 64 // n] - 1e30)),
    "window-on-odd-layer": Fault(30, "attention", by.window(16), layer=1),
    "window-missing": Fault(32, "attention", by.window(0)),
    "window-too-long": Fault(31, "attention", by.window(17)),
    "window-too-short": Fault(31, "attention", by.window(15)),
    "projection-of-next-rank": Fault(33, "attention", by.loads(
        "out.weight", lambda f, r, n: HEADS.shard(f, (r + 1) % n, n))),
    "heads-reversed": Fault(34, "attention", by.loads("out.weight", lambda f, r, n: HEADS.shard(f, n - 1 - r, n))),
    "out-bias-x-tp": Fault(35, "attention", by.loads("out.bias", lambda f, r, n: f * n), shows=(2, 8, 32)),
    "out-bias-by-tp": Fault(36, "attention", by.loads("out.bias", lambda f, r, n: f / n), shows=(2, 8, 32)),
    "out-bias-dropped": Fault(37, "attention", by.loads("out.bias", lambda f, r, n: f * 0)),
    "not-reduced": Fault(38, "attention", by.reduces(lambda g, x: x), "replicas: output.0: rank 1 holds"),
    "last-rank-dropped": Fault(39, "attention", by.reduces(
        lambda g, x: by.all_reduce(g, x * (g.rank != g.size - 1))), shows=(2, 8, 32)),
    "reduced-in-pairs": Fault(40, "attention", by.reduces(by.sum_of_pair), "replicas: output.0: rank 2 holds",
        inert=(2,)),
    "mean": Fault(41, "attention", by.reduces(lambda g, x: by.all_reduce(g, x) / g.size)),
    "reduced-twice": Fault(42, "attention", by.reduces(lambda g, x: by.all_reduce(g, by.all_reduce(g, x)))),
    "reduced-twice-and-recorded": Fault(42, "attention", by.reduces(lambda g, x: by.all_reduce(g, x)
        if len(g.calls) > 1 else g.all_reduce(by.all_reduce(g, x))), "schedule: recorded against planned: 2 coll"),
    "axes-swapped-around-sum": Fault(44, "attention", by.reduces(by.with_axes_swapped)),

    "router-bias-dropped": Fault(46, "mlp", by.loads("gate.bias", lambda f, r, n: f * 0)),
    "softmax-over-all-experts": Fault(47, "mlp", by.code_of("_route", by.softmax_over_all)),
    "gate-up-in-halves": Fault(49, "mlp", by.swiglu(layout="halves")),
    "gate-up-swapped": Fault(51, "mlp", by.swiglu(layout="swapped")),
    "mlp1-bias-of-rank-0": Fault(52, "mlp", by.loads("mlp1_bias", lambda f, r, n: PAIRS.shard(f, 0, n))),
    "clamp-missing": Fault(53, "mlp", by.swiglu(highest=1e9)),
    "gate-clamp-symmetric": Fault(54, "mlp", by.swiglu(lowest=-7.0), shows=(2, 8, 32)),
    "alpha-1": Fault(55, "mlp", by.swiglu(alpha=1.0)),
    "up-plus-1-missing": Fault(56, "mlp", by.swiglu(one=0.0)),
    "mlp2-of-next-rank": Fault(57, "mlp", by.loads(
        "mlp2_weight", lambda f, r, n: Shard(2).shard(f, (r + 1) % n, n))),
    "mlp2-bias-x-tp": Fault(58, "mlp", by.loads("mlp2_bias", lambda f, r, n: f * n), shows=(2, 8, 32)),
    "mlp2-bias-by-tp": Fault(59, "mlp", by.loads("mlp2_bias", lambda f, r, n: f / n)),
    "mlp2-bias-dropped": Fault(59, "mlp", by.loads("mlp2_bias", lambda f, r, n: f * 0)),
    "mlp2-bias-unweighted": Fault(59, "mlp", by.runs(mlp.NeuronGPTOSSMLPBlock, "forward", by.bias_unweighted)),
    "experts-not-reduced": Fault(60, "mlp", by.reduces(lambda g, x: x), "replicas: output.0: rank 1 holds"),
    "one-rank-s-replica": Fault(65, "mlp", by.sets("combined", lambda m, r, n: {
        "forward": lambda x: x * (1 + (r == 5) * 2.0**-22)}), "replicas: output.0: rank 5 holds"),
}
# fmt: on


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("ladder"), dtypes=("float32",))


@pytest.mark.parametrize("name", ["rope-offset-in-attention", "scale-of-local-width"])  # not in the registry
def test_a_fault_is_a_mismatch(ladder: Ladder, monkeypatch: Patch, name: str) -> None:
    fault = FAULTS[name]
    fault.apply(monkeypatch)
    for tp in fault.shows:
        result = ladder.run(fault.component, tp, layer=fault.layer)
        assert result.status in (Status.MISMATCH, Status.SHAPE), f"tp {tp}: {result.reason}"
        assert result.reason.startswith(fault.reason)
    for tp in fault.inert:
        assert ladder.run(fault.component, tp, layer=fault.layer).status is Status.PASS, f"tp {tp}"


def test_constant_weights_hide_what_discriminating_ones_show(
    ladder: Ladder, tmp_path: Path, monkeypatch: Patch
) -> None:
    weak = Ladder(tmp_path, targets=(("attention", 0),), init="constant", dtypes=("float32",))
    FAULTS["heads-reversed"].apply(monkeypatch)
    assert weak.run("attention", 8).status is Status.PASS
    assert ladder.run("attention", 8).status is Status.MISMATCH


# own cases: what no sabotage of a built-in one shows


class Sums(nn.Module):
    """x A + x B, or a part of both sums."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(12, inner)), nn.Parameter(torch.empty(12, inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.a.to(x.dtype)) + F.linear(x, self.b.to(x.dtype))


class ShardedSums(Sums):
    """Reduces (batch, seq, 12) and then the same flattened; ranks in `swapped` the other way round."""

    swapped: tuple[int, ...] = ()

    def __init__(self, inner: int) -> None:
        self.group = current_group()
        super().__init__(inner // self.group.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mine = x.chunk(self.group.size, -1)[self.group.rank]
        parts = [F.linear(mine, self.a.to(x.dtype)), F.linear(mine, self.b.to(x.dtype)).flatten(0, 1)]
        for i in (1, 0) if self.group.rank in self.swapped else (0, 1):
            parts[i] = self.group.all_reduce(parts[i])
        return parts[0] + parts[1].view_as(parts[0])


class Flat(nn.Module):
    """The same number for every token and feature: the mean of the weights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.group = current_group()
        self.weight = nn.Parameter(torch.empty(count // self.group.size, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.group.all_reduce(self.weight.to(x.dtype).sum() / 64)
        return total.expand(*x.shape[:2], 8).contiguous()


def run_own(folder: Path, monkeypatch: Patch, tp: int, **fields: Any) -> Result:
    """Verify an own case, entered in the registry as a component."""
    defaults: dict[str, Any] = {
        "name": "own",
        "reference": lambda: Sums(64),
        "sharded": lambda: ShardedSums(64),
        "inputs": lambda generator: (torch.randn(2, 24, 64, generator=generator),),
        "plan": {"a": Shard(1), "b": Shard(1)},
        "lazy": True,
        "in_dtype": components.follow_input,
    }
    monkeypatch.setitem(components.COMPONENTS, "own", lambda _config, _layer: Case(**(defaults | fields)))
    return Ladder(folder, targets=(("own", 0),)).run("own", tp)


def test_a_swapped_collective_order_that_outputs_hide(tmp_path: Path, monkeypatch: Patch) -> None:
    clean = run_own(tmp_path, monkeypatch, 8)
    assert clean.status is Status.PASS
    monkeypatch.setattr(ShardedSums, "swapped", (2, 5))
    swapped = run_own(tmp_path, monkeypatch, 8)
    assert swapped.reason == (
        "schedule: rank 2 against rank 0: call 0 is all_reduce [48, 12] float32 over 8 ranks "
        "instead of all_reduce [2, 24, 12] float32 over 8 ranks"
    )
    assert [check.name for check in swapped.checks if not check.passed] == ["schedule"]
    assert all(gate.passed for gate in swapped.gates)


@pytest.mark.parametrize(("given", "used"), [(0, 64), (7, 7)])
def test_the_longest_sum_is_the_case_s_or_the_largest_dimension(
    tmp_path: Path, monkeypatch: Patch, given: int, used: int
) -> None:
    assert f" sqrt({used}) 2^-24" in run_own(tmp_path, monkeypatch, 2, reduction=given).gates[0].reason


def test_a_missing_all_reduce_of_an_own_case(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ShardedSums, "forward", Sums.forward)
    result = run_own(tmp_path, monkeypatch, 8, input_placements=(Shard(2),))
    assert result.reason.startswith("replicas: output.0: rank 1 holds ")


@pytest.mark.parametrize(
    ("tp", "replicated", "status"), [(8, False, Status.VOID), (1, False, Status.PASS), (8, True, Status.PASS)]
)
def test_sharding_nothing_is_void(
    tmp_path: Path, monkeypatch: Patch, tp: int, replicated: bool, status: Status
) -> None:
    result = run_own(tmp_path, monkeypatch, tp, sharded=lambda: Sums(64), plan={}, replicated=replicated)
    assert result.status is status
    void = "nothing was sharded at tp 8: every rank held the full parameters and inputs"
    assert (result.reason == void) == (status is Status.VOID)


def test_a_constant_output_is_void(tmp_path: Path, monkeypatch: Patch) -> None:
    """Nothing that moves elements about could be seen in it."""
    fields = {"reference": lambda: Flat(64), "sharded": lambda: Flat(64), "plan": {"weight": Shard(0)}}
    result = run_own(tmp_path, monkeypatch, 8, **fields)
    assert result.reason == "the control passed: output.0 rolled by one element was not rejected"
    assert result.status is Status.VOID
    assert all(gate.passed for gate in result.gates)
