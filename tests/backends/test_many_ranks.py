"""More ranks than a trn1.32xlarge has NeuronCores, on CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Harness
from own_mlp import MLP

from tp_harness.errors import UsageError
from tp_harness.neuron.core_allocation import job_environment
from tp_harness.neuron.devices import Machine

CASES = (
    MLP
    + """
from tp_harness import current_group

class Sharded(MLP):
    def __init__(self):
        group = current_group()
        super().__init__(group.size)
        self.group = group

    def reduce(self, x):
        return self.group.all_reduce(x)

class Twice(Sharded):
    def reduce(self, x):
        return 2 * super().reduce(x)

def case(sharded):
    plan = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
    return Case(name="own", reference=MLP, sharded=sharded, plan=plan,
                inputs=lambda generator: (torch.randn(2, 8, 12, generator=generator),))

RIGHT, WRONG = case(Sharded), case(Twice)
"""
)


@pytest.mark.parametrize("backend", ["gloo", "local"])
def test_64_ranks_are_verified_on_cpus(tmp_path: Path, backend: str) -> None:
    harness = Harness(tmp_path)
    harness.cases.write_text(CASES)
    options = ("--tp", "64", "--backend", backend, "--dtype", "float32", "--draws", "1")
    assert harness.code("--case", str(harness.cases), *options) == 1
    results = harness.record()["results"]
    assert [(r["status"], len(r["ranks"])) for r in results] == [("PASS", 64), ("MISMATCH", 64)]


def test_neuroncores_are_no_more_than_there_are() -> None:
    with pytest.raises(UsageError, match=r"^tp_degree 64 is not one that AWS supports on Trn1"):
        job_environment({}, Machine(), 64)
