"""neuronx-distributed (NxD): what is prepared for it, held against recorded facts about it; and its absence, told.

NxD is not in this environment, as its wheels come from AWS's own index. No test here puts anything in its place:
what needs NxD itself is skipped, and what can be known without it is held to the rule that
tests/support/nxd_rule.py restates. What it is called with is held to its public signatures in test_nxd_signatures.py.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from nxd_orders import builder_arguments, order
from nxd_rule import cut
from torch import nn

from tp_harness import nxd, testing
from tp_harness.case.plan import stand_in_group
from tp_harness.config.model import NeuronConfig
from tp_harness.errors import UsageError
from tp_harness.libraries import neuronx_distributed_private as private
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.nxd import traced
from tp_harness.parallel.group import Group, use_group
from tp_harness.testing import neuron_build
from tp_harness.testing.module_server import ShardedModuleError

PRESENT = importlib.util.find_spec("neuronx_distributed") is not None
COMPONENTS = ("attention", "mlp", "transformer_block", "embedding", "unembedding", "transformer")


class OtherBase(nn.Module):
    """A base class such as NxD's BaseParallelLinear is: only its identity matters."""


def test_the_loader_gives_a_new_mapping_each_time_because_nxd_changes_it() -> None:
    load = builder_arguments()["checkpoint_loader"]
    first = load()
    first.clear()
    assert load().keys() == {"w", "start"}


@pytest.mark.parametrize("tp", [2, 8, 32])
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_prepared_module_is_cut_by_nxd_s_rule_as_by_our_plan(component: str, tp: int) -> None:
    config = InferenceConfig.of(PRESETS["tiny"], NeuronConfig(tp_degree=tp))
    case = component_case(component, config, 0)
    shapes = {name: tensor.shape for name, tensor in case.make(case.reference).state_dict().items()}
    full = {name: torch.randn(shape) for name, shape in shapes.items()}
    ranked = traced.rank_data(case.sharded, tp)
    assert bool(ranked) == (component in ("embedding", "transformer"))
    for rank in (0, tp - 1):
        with use_group(traced.NxDGroup(tp)):
            module = traced.prepare(case.sharded(), ranked, OtherBase, tp)
        checkpoint = {**full, **ranked}
        shard(module, checkpoint, rank)
        module.load_state_dict(checkpoint)
        for name, placement in case.plan.items():
            assert torch.equal(checkpoint[name], placement.shard(full[name], rank, tp)), name
        with use_group(Group(rank, tp)):
            own = dict(case.sharded().named_buffers())
        for name in ranked:
            assert checkpoint[name].dtype == torch.int32, "as SPMDRank's: Trn1 has no int64"
            assert torch.equal(checkpoint[name], torch.atleast_1d(own[name]).to(torch.int32)), name


def shard(module: nn.Module, checkpoint: dict[str, torch.Tensor], rank: int) -> None:
    """preprocess_checkpoint and shard_children of NxD's trace/trace.py, restated: hooks first, then the cutting."""
    for prefix, child in module.named_modules():
        if hasattr(child, "preshard_hook"):
            for leaf in ("weight", "bias") if getattr(child, "add_bias", False) else ("weight",):
                child.preshard_hook(checkpoint, f"{prefix}.{leaf}")
    for prefix, child in module.named_modules():
        if isinstance(child, OtherBase):
            for leaf, parameter in child.named_parameters(recurse=False):
                name = f"{prefix}.{leaf}" if prefix else leaf
                checkpoint[name] = cut(checkpoint[name], parameter, rank)


@contextmanager
def on_meta() -> Iterator[None]:
    """init_on_device of NxD's utils/model_utils.py, restated: every parameter that is registered is made anew on
    device meta, from what it is and from its attributes, which Parameter refuses."""
    real = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        real(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            settings = {**parameter.__dict__, "requires_grad": parameter.requires_grad}
            module._parameters[name] = nn.Parameter(parameter.to("meta"), **settings)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = real  # type: ignore[method-assign]


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_module_is_prepared_as_well_where_nxd_makes_its_parameters_anew(component: str) -> None:
    case = component_case(component, InferenceConfig.of(PRESETS["tiny"], NeuronConfig(tp_degree=8)), 0)
    ranked = traced.rank_data(case.sharded, 8)
    with use_group(traced.NxDGroup(8)):
        here = traced.prepare(case.sharded(), ranked, OtherBase, 8)
        with on_meta():
            there = traced.prepare(case.sharded(), ranked, OtherBase, 8)
    for (name, parameter), (_, again) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert again.is_meta and (again.shape, again.dtype) == (parameter.shape, parameter.dtype)
        settings = {**parameter.__dict__, "requires_grad": again.requires_grad}
        assert settings == {**again.__dict__, "requires_grad": False}, name


def test_an_attribute_set_before_registering_would_be_found() -> None:
    parameter = nn.Parameter(torch.zeros(1), requires_grad=False)
    parameter.partition_dim = 0  # type: ignore[attr-defined]
    with on_meta(), pytest.raises(TypeError, match="partition_dim"):
        nn.Module().register_parameter("rank", parameter)


def test_a_prepared_module_computes_what_it_did() -> None:
    config = InferenceConfig.of(PRESETS["tiny"], NeuronConfig())
    case = component_case("embedding", config, 0)
    tokens = torch.arange(8).view(1, 8)
    with use_group(Group(1, 2)):
        plain, prepared = case.sharded(), case.sharded()
    prepared.load_state_dict(plain.state_dict())
    traced.prepare(prepared, traced.rank_data(case.sharded, 2), OtherBase, 2)
    for module in (plain, prepared):
        module.group = Group()  # a rank's own summand, without the reduction
    assert isinstance(prepared, OtherBase)
    assert torch.equal(plain(tokens), prepared(tokens))


@pytest.mark.skipif(PRESENT, reason="neuronx-distributed is installed, so its absence cannot be told")
def test_its_absence_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"neuronx-distributed is not installed .* AWS's Neuron package index"):
        nxd.require()
    with pytest.raises(UsageError, match="neuronx-distributed is not installed"):
        nxd.parallel(lambda: nn.Linear(2, 2))()
    monkeypatch.setattr(testing, "on_neuron", lambda _environment: True)
    with pytest.raises(UsageError, match="neuronx-distributed is not installed"):
        testing.build_module(nn.Identity, [(torch.zeros(1),)])


def test_on_neuron_an_environment_that_would_spoil_the_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "on_neuron", lambda _environment: True)
    for name, message in (("XLA_USE_BF16", "XLA_USE_BF16 is '1'"), ("NXD_CPU_MODE", "keeps neuronx-distributed on")):
        with monkeypatch.context() as patch, pytest.raises(UsageError, match=message):
            patch.setenv(name, "1")
            testing.build_module(nn.Identity, [(torch.zeros(1),)])


class Told(nn.Module):
    """Answers with what NxD would find in this process: its id, and where its cores are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, _, last = os.environ["NEURON_RT_VISIBLE_CORES"].partition("-")
        assert not dist.is_initialized() and "TORCHELASTIC_RUN_ID" not in os.environ
        port = int(os.environ["NEURON_RT_ROOT_COMM_ID"].rpartition(":")[2])
        return torch.tensor([os.getpid(), int(first), int(last or first), port]) + x.long()


def test_every_build_has_a_process_and_cores_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime has one world size per process, and a test builds at several degrees."""
    monkeypatch.delenv("NEURON_RT_VISIBLE_CORES", raising=False)
    monkeypatch.setattr(neuron_build, "require_installed", lambda: None)
    monkeypatch.setattr(neuron_build, "require", lambda: None)
    monkeypatch.setattr(neuron_build, "_compile", lambda _order: Told())
    found = []
    for tp, visible in ((1, ""), (8, ""), (8, "8-15")):
        monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", visible)
        environment = neuron_build.build_environment(tp)
        built = neuron_build.build(order(tp_degree=tp), environment)
        assert built is not None
        with built as model:
            found.append(model(torch.zeros(4)).tolist())
        with pytest.raises(ShardedModuleError, match="the ranks of this module were ended"):
            built(torch.zeros(4))
    assert [row[1:] for row in found] == [[0, 0, 62182], [0, 7, 62182], [8, 15, 62190]]
    assert len({os.getpid(), *(row[0] for row in found)}) == 4
    assert neuron_build.build(order(dry_run=True), environment) is None


def test_in_a_test_that_holds_too_few_cores_the_mark_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuron_build, "require_installed", lambda: None)
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "3")
    with pytest.raises(UsageError, match=r"tp 8 needs 8 NeuronCores .* @pytest.mark.tp\(8\) gives a test its cores"):
        neuron_build.build_environment(8)


def test_a_module_that_calls_torch_distributed_is_told_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_order: neuron_build.Order) -> nn.Module:
        dist.get_world_size()
        return nn.Identity()

    monkeypatch.setattr(neuron_build, "require", lambda: None)
    monkeypatch.setattr(neuron_build, "_compile", fail)
    with pytest.raises(UsageError, match=r"calls torch.distributed itself.* use tp_harness.current_group\(\)"):
        neuron_build.build(order(), {})


def test_nxd_s_cpu_mode_lasts_in_ranks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that starts them, where torch.distributed only stands in, it would end up in a later build."""
    monkeypatch.delenv("NXD_CPU_MODE", raising=False)
    with stand_in_group(2, real=True), nxd._cpu_mode():
        assert os.environ["NXD_CPU_MODE"] == "1"
    assert "NXD_CPU_MODE" not in os.environ
    with nxd._cpu_mode():
        pass
    assert os.environ["NXD_CPU_MODE"] == "1"


@pytest.mark.parametrize("module", [nxd, traced, neuron_build, private], ids=lambda module: str(module.__name__))
def test_importing_our_side_imports_nothing_of_it(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    at_start = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [line for line in at_start if line.split()[1].startswith("neuronx")]


@pytest.mark.skipif(not PRESENT, reason="neuronx-distributed is not installed: its wheels come from AWS's own index")
@pytest.mark.parametrize("tp", [2, 8, 32])
def test_nxd_s_own_sharding_cuts_every_component_as_our_plan(tp: int) -> None:
    from neuronx_distributed.parallel_layers.layers import BaseParallelLinear
    from neuronx_distributed.trace.trace import get_sharded_checkpoint

    config = InferenceConfig.of(PRESETS["tiny"], NeuronConfig(tp_degree=tp))
    for component in COMPONENTS:
        case = component_case(component, config, 0)
        full = {name: torch.randn(tensor.shape) for name, tensor in case.reference().state_dict().items()}
        ranked = traced.rank_data(case.sharded, tp)
        for rank in (0, tp - 1):
            with use_group(traced.NxDGroup(tp)):
                module = traced.prepare(case.sharded(), ranked, BaseParallelLinear, tp)
            checkpoint = {**full, **ranked}
            get_sharded_checkpoint(checkpoint, module, rank, tp)
            for name, placement in case.plan.items():
                assert torch.equal(checkpoint[name], placement.shard(full[name], rank, tp)), (component, name)
