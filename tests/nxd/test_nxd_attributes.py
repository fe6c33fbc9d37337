"""The attributes that neuronx-distributed's checkpoint sharding reads: set by the plan, cut alike, read back.

neuronx-distributed itself is not here; tests/support/nxd_rule.py restates what it does.
"""

from __future__ import annotations

import pytest
import torch
from nxd_rule import cut, pieces
from torch import nn

from tp_harness.case.tried_placements import PlanError, module_placement
from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.components import COMPONENTS, component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.parallel.group import Group, use_group
from tp_harness.parallel.nxd_attributes import NOT_SHARDED, mark, marked, marks, replicate_kv
from tp_harness.parallel.placements import KVHeads, Partial, Placement, QKVHeads, Replicate, Shard, StridedShard


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)


@pytest.mark.parametrize("tp", [1, 2, 8, 32])
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_parameter_of_every_component_is_cut_as_the_plan_says(component: str, tp: int) -> None:
    config = InferenceConfig.of(PRESETS["tiny"], NeuronConfig(tp_degree=tp))
    case = component_case(component, config, 0)
    reference = case.make(case.reference).state_dict()
    with use_group(Group(0, tp)):
        module = case.make(case.sharded)
    for name, parameter in module.named_parameters():
        placement = case.plan[name]
        full = numbered(*reference[name].shape)
        stored = replicate_kv(full, placement, tp) if isinstance(placement, QKVHeads) else full
        for rank in (0, tp // 2, tp - 1):
            expected = placement.shard(full, rank, tp)
            assert torch.equal(cut(stored, parameter, rank), expected), (name, rank)
            assert expected.shape == parameter.shape
        assert parameter.tensor_model_parallel == (tp > 1 and not isinstance(placement, Replicate)), name


def test_a_wrong_attribute_would_be_found() -> None:
    parameter = nn.Parameter(torch.empty(2, 6))
    holder = nn.ParameterDict({"w": parameter})
    mark(holder, {"w": Shard(0)}, 2)
    full = numbered(4, 6)
    assert torch.equal(cut(full, parameter, 1), Shard(0).shard(full, 1, 2))
    parameter.partition_dim = 1
    assert not torch.equal(cut(full, parameter, 1), Shard(0).shard(full, 1, 2))
    parameter.partition_dim, parameter.partition_stride = 0, 2
    assert not torch.equal(cut(full, parameter, 1), Shard(0).shard(full, 1, 2))


@pytest.mark.parametrize("placement", [Shard(0), Shard(1, unit=2), StridedShard(0, 2), QKVHeads(8, 4, 2)], ids=str)
def test_what_is_marked_is_read_back(placement: Placement) -> None:
    full = numbered(32, 8)
    holder = nn.ParameterDict({"w": nn.Parameter(placement.shard(full, 0, 2).float())})
    mark(holder, {"w": placement}, 2)
    found = marked(holder["w"], 2)
    assert found is not None
    assert all(torch.equal(found.shard(full, rank, 2), placement.shard(full, rank, 2)) for rank in (0, 1))
    assert module_placement({}, "w", holder["w"], full.shape, 2) == found


def test_what_is_not_marked_says_nothing() -> None:
    assert marked(torch.empty(2), 2) is None
    assert marks(Replicate(), 8) == marks(Shard(0), 1) == NOT_SHARDED
    with pytest.raises(TypeError, match="partial sums"):
        marks(Partial(), 2)


def test_marks_that_do_not_give_the_local_shape_are_refused() -> None:
    parameter = nn.Parameter(torch.empty(2, 6))
    mark(nn.ParameterDict({"w": parameter}), {"w": Shard(1)}, 2)
    with pytest.raises(PlanError, match="makes shards"):
        module_placement({}, "w", parameter, (4, 6), 2)


@pytest.mark.parametrize("size", [2, 4, 8, 32])
def test_replicated_kv_heads_are_where_the_placement_puts_them(size: int) -> None:
    heads = KVHeads(1, 4, 3)
    full = numbered(2, 12)
    assert torch.equal(pieces(replicate_kv(full, heads, size), 1, 1, size - 1, size), heads.shard(full, size - 1, size))
    fused = QKVHeads(32, 4, 3)
    rows = numbered((32 + 8) * 3, 5)
    assert replicate_kv(rows, fused, size).shape[0] == (32 + 2 * max(4, size)) * 3
