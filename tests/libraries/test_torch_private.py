"""What each wrapper of a part of torch does; where torch has changed the part, the failure names it.

The parts of torch-xla do their work in tests/xla, that of pytest in tests/pytest_plugin.
"""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from library_parts import PARTS
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.elastic import events
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from tp_harness.libraries import torch_private as private
from tp_harness.libraries.torch_private import TORCH, stand_in_groups
from tp_harness.libraries.torchelastic_private import ELASTIC, OpenAgent, name_host_at_once

_C10D = "torch.distributed.distributed_c10d"


class Seen(private.DispatchMode):
    """Keeps the names of the operations, and of the reduction that each of them is a part of."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.reductions: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        self.reductions.append(private.reduction_of_caller())
        return func(*args, **(kwargs or {}))


class Extra(nn.Module):
    def get_extra_state(self) -> int:
        return 1


def extra_state() -> None:
    assert list(nn.Sequential(Extra()).state_dict()) == [f"0.{private.EXTRA_STATE}"]


def module_internals() -> None:
    module = nn.BatchNorm1d(2)
    assert {"_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks"} <= private.MODULE_INTERNALS
    assert set(vars(module)) - private.MODULE_INTERNALS >= {"_buffers", "training", "eps"}
    assert set(vars(module)["_buffers"]) == {name for name, _ in module.named_buffers()}


def dispatch_mode() -> None:
    with Seen() as seen:
        torch.ones(2) + 1
    assert seen.names == ["ones", "add"]


def without_modes() -> None:
    with Seen() as seen, private.without_modes():
        torch.ones(2)
    assert seen.names == []


def argument_names() -> None:
    assert private.argument_names(torch.ops.aten.add.Tensor) == ("self", "other", "alpha")


def flop_formulas() -> None:
    x, y = torch.ones(2, 3), torch.ones(3, 5)
    assert private.flop_formulas()[torch.ops.aten.mm](x, y, out_val=x @ y) == 2 * 2 * 3 * 5


def leaves() -> None:
    assert private.leaves({"a": [1, (2,)], "b": 3}) == [1, 2, 3]


def apply_to_tensors() -> None:
    module = nn.BatchNorm1d(2)
    assert private.apply_to_tensors(module, lambda x: x.double() if x.is_floating_point() else x) is module
    kinds = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    assert kinds.pop("num_batches_tracked") == torch.int64
    assert set(kinds.values()) == {torch.float64}


def arrived() -> None:
    x = torch.ones(2)
    assert private.arrived(x) is x
    with stand_in_groups(2):
        pending = functional.all_reduce(x, "sum", dist.group.WORLD)
        assert type(pending) is not torch.Tensor
        assert type(private.arrived(pending)) is torch.Tensor


def group_named() -> None:
    with stand_in_groups(2):
        group = dist.new_group([0])
        assert private.group_named(group.group_name) is group


def reduction_of_caller() -> None:
    assert private.reduction_of_caller() == ""
    with stand_in_groups(2), Seen() as seen:
        dist.all_reduce(torch.ones(2), op=dist.ReduceOp.MAX)
    assert "max" in seen.reductions


def groups() -> None:
    kept = dist.get_backend, dist.distributed_c10d.get_backend, dist.distributed_c10d._new_process_group_helper
    assert not private.stands_in()
    with stand_in_groups(4):
        assert private.stands_in()
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 4, "gloo")
        assert private.group_count() == 1
        pair = dist.new_group([0, 1], backend="gloo")  # a real one would wait for rank 1
        dist.all_reduce(torch.ones(2), group=pair)
        assert private.group_count() == 2
    assert not dist.is_initialized()
    assert kept == (
        dist.get_backend,
        dist.distributed_c10d.get_backend,
        dist.distributed_c10d._new_process_group_helper,
    )


def no_process_group() -> None:
    with pytest.raises(ValueError, match=f"^{private.NO_PROCESS_GROUP}"):
        dist.get_world_size()


def threads_have_groups_of_their_own() -> None:
    text = """
import threading
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from tp_harness.libraries.torch_private import give_threads_groups_of_their_own
give_threads_groups_of_their_own()
def rank(number):
    dist.init_process_group("fake", rank=number, world_size=2, store=FakeStore())
    both.wait()
    found[number] = dist.get_rank()
both, found = threading.Barrier(2), {}
ranks = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
[each.start() for each in ranks], [each.join() for each in ranks]
print(sorted(found.items()), dist.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.stdout == "[(0, 0), (1, 1)] False\n", done.stderr


def storages() -> None:
    x = torch.zeros(4)
    reference, view = private.storage_reference(x), x[1:]
    assert private.storage_id(view) == private.storage_id(x) != private.storage_id(x.clone())
    del x
    assert not reference.expired()
    del view
    assert reference.expired()


def tree_map() -> None:
    assert private.tree_map(lambda x: x + 1, {"a": [1, (2,)]}) == {"a": [2, (3,)]}


def kinds_of_operations() -> None:
    aten = torch.ops.aten
    assert [private.is_composite(operation) for operation in (aten.linear.default, aten.mm.default)] == [True, False]
    assert private.operation_name(aten.add_.Tensor) == "add_"
    x = torch.ones(2)
    assert private.written(aten.add_.Tensor, (x, 1), {}) == [x]
    assert [private.writes(operation) for operation in (aten.add_.Tensor, aten.add.Tensor)] == [True, False]
    assert [private.gives_views(operation) for operation in (aten.view.default, aten.add.Tensor)] == [True, False]


def decompositions() -> None:
    of_silu = private.decomposition(torch.ops.aten.silu.default)
    assert of_silu is not None
    torch.testing.assert_close(of_silu(torch.ones(2)), torch.ones(2) * torch.ones(2).sigmoid())
    assert private.decomposition(torch.ops.aten.mm.default) is None


def works() -> None:
    with stand_in_groups(2):
        work = dist.all_reduce(torch.ones(2), async_op=True)
        private.wait_for(work)
        assert isinstance(private.is_complete(work), bool)
        boxed = dist.group.WORLD.boxed()
        assert private.process_group(boxed).size() == private.process_group(dist.group.WORLD).size() == 2
        private.wait_for(torch.ops.c10d.broadcast_([torch.ones(1)], boxed, 0, 0)[1])  # a boxed one


def decomposed() -> None:
    of_each = torch.ops.aten._foreach_add.Scalar
    with Seen() as seen:
        both = private.decomposed(of_each, ([torch.ones(1), torch.zeros(1)], 2.0), {})
    assert torch.cat(both).tolist() == [3.0, 2.0]
    assert seen.names.count("add") == 2
    assert private.decomposed(torch.ops.aten.reshape.default, (torch.ones(2), [1, 2]), {}).shape == (1, 2)


def function_modes() -> None:
    class Counting(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counting.calls += 1
            return func(*args, **(kwargs or {}))

    assert private.function_modes() == 0
    with Counting():
        assert private.function_modes() == 1
        with private.without_function_modes():
            torch.ones(1) + 1
    assert Counting.calls == 0


def split_factor() -> None:
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    assert private.split_factor(_StridedShard(0, split_factor=2)) == 2
    assert private.split_factor(Shard(0)) is None


CHECKS: dict[str, Callable[[], None]] = {
    "torch._C:DisableTorchFunction": function_modes,
    "torch._C:DispatchKey.CPU": decomposed,
    "torch._C:DispatchKeySet": decomposed,
    "torch._ops:OpOverload.redispatch": decomposed,
    "torch.nn.modules.module:_EXTRA_STATE_KEY_SUFFIX": extra_state,
    "torch.nn:Module.__dict__": module_internals,
    "torch.utils._python_dispatch:TorchDispatchMode": dispatch_mode,
    "torch.utils._python_dispatch:_disable_current_modes": without_modes,
    "torch._ops:OpOverload._schema": argument_names,
    "torch.utils.flop_counter:flop_registry": flop_formulas,
    "torch.utils._pytree:tree_leaves": leaves,
    "torch.utils._pytree:tree_map": tree_map,
    "torch.multiprocessing.reductions:StorageWeakRef": storages,
    "torch._C:_dispatch_has_kernel_for_dispatch_key": kinds_of_operations,
    "torch._decomp:decomposition_table": decompositions,
    "torch.distributed:Work": works,
    "torch.distributed.tensor.placement_types:_StridedShard": split_factor,
    "torch.nn:Module._apply": apply_to_tensors,
    "torch.distributed._functional_collectives:AsyncCollectiveTensor": arrived,
    f"{_C10D}:_resolve_process_group": group_named,
    f"{_C10D}:all_reduce": reduction_of_caller,
    f"{_C10D}:_world.pg_map": groups,
    f"{_C10D}:_new_process_group_helper": groups,
    "torch.testing._internal.distributed.fake_pg:FakeStore": groups,
    f"{_C10D}:_get_default_group": no_process_group,
    "torch.testing._internal.distributed.multi_threaded_pg:_install_threaded_pg": threads_have_groups_of_their_own,
    "torch._C._distributed_c10d:_set_thread_isolation_mode": threads_have_groups_of_their_own,
}


def check(path: str) -> None:
    try:
        CHECKS[path]()
    except Exception as error:
        raise AssertionError(TORCH.moved(path)) from error


@pytest.mark.parametrize("path", CHECKS)
def test_a_part_of_torch_does_what_it_did(path: str) -> None:
    check(path)


def test_every_part_of_torch_has_its_check() -> None:
    assert {path for path, file in PARTS.items() if file == "libraries.torch_private"} <= set(CHECKS)


def test_a_part_that_was_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._pytree.tree_leaves", lambda tree: [tree])
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_group", lambda: None)
    for part in ("torch.utils._pytree:tree_leaves", f"{_C10D}:_get_default_group"):
        with pytest.raises(AssertionError, match=f"has moved or changed {part.replace(':', '.')}, .*torch_private.py"):
            check(part)


def test_the_elastic_agent_s_steps_are_those_that_are_overridden() -> None:
    for name in ("_start_workers", "_monitor_workers"):
        theirs, ours = (
            list(inspect.signature(getattr(kind, name)).parameters) for kind in (LocalElasticAgent, OpenAgent)
        )
        assert theirs == ours, ELASTIC.moved(f"{LocalElasticAgent.__module__}:LocalElasticAgent.{name}")


def test_the_elastic_agent_s_events_ask_for_the_host_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "socket.getfqdn()" in inspect.getsource(events)
    assert asked, ELASTIC.moved(f"{events.__name__}:construct_and_record_rdzv_event")
    monkeypatch.setattr(socket, "getfqdn", socket.getfqdn)
    name_host_at_once()
    assert events.socket.getfqdn() == "localhost"
