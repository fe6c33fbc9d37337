"""A run in float16: right code passes at the limit of R that bfloat16 has, and mistakes do not."""

from __future__ import annotations

import pytest
import torch
from ladder import TARGETS, Ladder, options

from tp_harness.faults import FAULTS
from tp_harness.faults.fault import Fault
from tp_harness.judge.distance import without_constants
from tp_harness.results.gate import RATIO
from tp_harness.results.result import Status
from tp_harness.verification.negative_control import config_at

SEEN = [
    fault
    for fault in FAULTS
    if {"bfloat16", "float16"} <= set(fault.visible_in)
    and fault.component in ("attention", "mlp")
    and fault.active(config_at(options(seq=40), 8), 8)
][::4]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("ladder"), dtypes=("float16",), seq=40)


@pytest.mark.parametrize(("name", "layer"), TARGETS, ids=[f"{name}{layer}" for name, layer in TARGETS])
@pytest.mark.parametrize("tp", [2, 32], ids="tp{}".format)
def test_right_code_passes(ladder: Ladder, name: str, layer: int, tp: int) -> None:
    found = ladder.run(name, tp, "float16", layer=layer)
    assert found.status is Status.PASS, found.reason
    assert {gate.kind for gate in found.gates} == {RATIO}


@pytest.mark.parametrize("fault", SEEN, ids=[fault.name for fault in SEEN])
def test_a_mistake_is_rejected(ladder: Ladder, fault: Fault) -> None:
    found = ladder.run(fault.component, 8, "float16", layer=fault.layer, fault=fault)
    assert found.status.failed, found.reason


def test_the_lowest_number_of_float16_is_a_mask() -> None:
    oracle = torch.tensor([1.0, 2.0, torch.finfo(torch.float64).min, 3.0], dtype=torch.float64)
    rank = torch.tensor([1.0, 2.0, torch.finfo(torch.float16).min, 3.0], dtype=torch.float16)
    assert [x.tolist() for x in without_constants(oracle, rank)] == [[1.0, 2.0, 0.0, 3.0]] * 2
