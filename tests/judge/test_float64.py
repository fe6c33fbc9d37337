"""A run in float64: right code passes within limits that no rounding explains away, and mistakes are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ladder import TARGETS, Ladder, Ranks, mistake, own_ladder
from torch import nn

from tp_harness import Case, Shard
from tp_harness.diagnosis.explain import explain
from tp_harness.faults import FAULTS, find_fault
from tp_harness.faults.ways import computes
from tp_harness.judge.judge import FLOAT32_INSIDE, SCATTER
from tp_harness.models.gpt_oss.modules.rope import NeuronGPTOSSRotaryEmbedding
from tp_harness.mutation.mutant import try_faults
from tp_harness.parallel.group import current_group
from tp_harness.results.gate import REL_L2
from tp_harness.results.mutation_score import Trial
from tp_harness.results.result import Result, Status

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("ladder"), dtypes=("float64",), seq=40)


@pytest.mark.parametrize(("name", "layer"), TARGETS, ids=[f"{name}{layer}" for name, layer in TARGETS])
@pytest.mark.parametrize("tp", [1, 2, 32], ids="tp{}".format)
def test_right_code_passes(ladder: Ladder, name: str, layer: int, tp: int) -> None:
    found = ladder.run(name, tp, "float64", layer=layer)
    assert (found.status, found.notes, found.flips) == (Status.PASS, (), ())
    assert all(10 * gate.value < gate.limit <= 4e-12 for gate in found.gates), "a tenth of the limit at most"
    left = ladder.evidence(name, tp, "float64", layer=layer).ranks[0].tensors
    assert not any(key.variant == "unlocked" for key in left), "nothing flips that a run of its own would have to show"


def test_the_logits_of_a_router_have_limits_too(ladder: Ladder) -> None:
    kinds = {gate.tensor for gate in ladder.run("mlp", 2, "float64").gates}
    assert {"output.0", "router_logits"} <= kinds


def test_a_change_far_below_float32_s_rounding_is_a_mismatch(ladder: Ladder) -> None:
    off = mistake(computes("norm.scale", lambda x, rank, size: x.double() * (1 + 5e-13)), "attention")
    found = ladder.run("attention", 2, "float64", fault=off)
    assert found.status is Status.MISMATCH
    assert found.reason.startswith(REL_L2) or "worst" in found.reason
    assert SCATTER not in found.notes, "no nearby input widens the limit"


def test_a_token_that_chooses_other_experts_is_a_mismatch_unless_they_tie(ladder: Ladder) -> None:
    def flipped(ranks: Ranks) -> None:
        for output in ranks.values():
            key = next(key for key in output.tensors if key.name == "chosen")
            chosen = output.tensors[key]
            others = [e for e in range(32) if e not in chosen[0].tolist()]
            chosen[0, 0] = others[0]

    found = ladder.run("mlp", 2, "float64", spoil=flipped)
    assert found.status is Status.MISMATCH
    [flip] = found.flips
    assert flip.margin > 1e9 * flip.limit > 0


@pytest.fixture(scope="module")
def trials(ladder: Ladder) -> list[Trial]:
    return try_faults(ladder.bench, FAULTS, 8)


def test_every_fault_is_caught_where_it_is_active_and_named_as_in_float32(trials: list[Trial]) -> None:
    assert [trial.fault for trial in trials if trial.bad or trial.outcome == "missed"] == []
    assert {trial.outcome for trial in trials} == {"caught", "inert"}
    assert len([trial for trial in trials if trial.outcome == "caught"]) == 82
    assert all(trial.must for trial in trials), "float64 sees what bfloat16 cannot"
    unnamed = [t.fault for t in trials if t.outcome == "caught" and t.signature and t.signature not in t.causes[:1]]
    assert unnamed == []


def test_a_tensor_that_is_named_wrong_in_float64_is_a_bad_outcome(trials: list[Trial]) -> None:
    caught = next(trial for trial in trials if trial.outcome == "caught")
    assert replace(caught, first="another").bad
    assert not replace(caught, first="another", dtype="bfloat16").bad


class Toy(nn.Module):
    """down(relu(up(x))) + bias, the bias added once."""

    bias_inside = False
    summed_in = torch.float64

    def __init__(self, ranks: int = 1) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256 // ranks), nn.Linear(256 // ranks, 64, bias=False)
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.down(torch.relu(self.up(x)))
        return self.sum(part + self.bias) if self.bias_inside else self.sum(part) + self.bias

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ShardedToy(Toy):
    def __init__(self) -> None:
        super().__init__(current_group().size)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return current_group().all_reduce(x.to(self.summed_in)).to(x.dtype)


def own(folder: Path, patch: Patch) -> Result:
    case = Case(
        name="own",
        reference=Toy,
        sharded=ShardedToy,
        plan={"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)},
        inputs=lambda generator: (torch.randn(2, 16, 64, generator=generator),),
    )
    ladder = own_ladder(folder, patch, case, dtypes=("float64",))
    evidence = ladder.evidence("own", 8, "float64", taps=True)
    return explain(evidence, ladder.run("own", 8, "float64"))


def test_a_case_of_one_s_own(tmp_path: Path, monkeypatch: Patch) -> None:
    right = own(tmp_path / "right", monkeypatch)
    assert (right.status, right.gates[0].value > 0) == (Status.PASS, True)
    monkeypatch.setattr(ShardedToy, "bias_inside", True)
    wrong = own(tmp_path / "wrong", monkeypatch)
    assert wrong.status is Status.MISMATCH
    assert [cause.name for cause in wrong.diagnosis] == ["bias x tp"]


@pytest.mark.parametrize(
    ("dtype", "status"), [(torch.float32, Status.UNDECIDED), (torch.bfloat16, Status.MISMATCH)], ids=str
)
def test_a_user_s_module_that_sums_in_float32_is_not_wrong_and_one_that_sums_in_less_is(
    tmp_path: Path, monkeypatch: Patch, dtype: torch.dtype, status: Status
) -> None:
    monkeypatch.setattr(ShardedToy, "summed_in", dtype)
    found = own(tmp_path, monkeypatch)
    assert found.status is status
    assert found.reason.endswith(FLOAT32_INSIDE) == (status is Status.UNDECIDED)
    assert found.gates[0].value > 1e3 * found.gates[0].limit


def test_what_float32_may_explain_in_a_user_s_module_is_wrong_in_a_family_s(ladder: Ladder) -> None:
    off = mistake(computes("norm.scale", lambda x, rank, size: x.double() * (1 + 1e-8)), "attention")
    found = ladder.run("attention", 2, "float64", fault=off)
    assert found.status is Status.MISMATCH
    assert 1e-9 < found.gates[0].value < 1e-7


def test_a_model_in_float64_has_its_angles_in_it(ladder: Ladder) -> None:
    config = ladder.bench.material.subject.config(dtype="float64", tp=1)

    assert NeuronGPTOSSRotaryEmbedding(config).cos.dtype is torch.float64
    half = ladder.bench.material.subject.config(dtype="bfloat16", tp=1)
    assert NeuronGPTOSSRotaryEmbedding(half).cos.dtype is torch.float32
    assert find_fault("norm-eps").visible_in[0] == "exact"
