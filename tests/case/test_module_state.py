"""What a module keeps from call to call is put back, in whatever it keeps it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ladder import own_ladder
from torch import nn

from tp_harness.case.case import Case
from tp_harness.case.module_state import remembered
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.results.result import Status


class Cache:
    """An object of a user's class, which two modules share."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.length = 0

    def add(self, x: torch.Tensor) -> torch.Tensor:
        self.keys.append(x)
        self.length += 1
        return torch.stack(self.keys).sum(0)


class Layer(nn.Module):
    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.cache = cache

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cache.add(x)


class Keeper(nn.Module):
    """Keeps something in every place that there is."""

    def __init__(self) -> None:
        super().__init__()
        cache = Cache()
        self.first, self.second = Layer(cache), Layer(cache)
        self.group = current_group()
        self.register_buffer("running", torch.zeros(4), persistent=False)
        self.calls, self.by_name, self.seen = 0, {"last": torch.zeros(4)}, {1}
        self.recent = deque([torch.zeros(4)], maxlen=3)
        self.window = self.running[1:3]  # a view of a buffer
        self.generator = torch.Generator().manual_seed(3)
        self.replaced = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.add(self.calls + 1)
        self.recent.append(x.detach()[0])
        self.running += x.detach().mean()
        self.window.mul_(2)
        self.by_name["last"] += self.running
        self.by_name[f"call {self.calls}"] = x
        self.replaced = self.replaced + 1
        self.later = x if self.calls == 1 else self.later + x
        noise = torch.rand(4, generator=self.generator)
        kept = (
            self.running
            + self.by_name["last"]
            + self.replaced
            + len(self.by_name)
            + len(self.seen)
            + noise
            + sum(self.recent)
        )
        return self.second(self.first(x)) + kept + self.later


def test_a_forward_after_it_gives_the_same_bits() -> None:
    with torch.inference_mode():
        module, x = Keeper(), torch.randn(3, 4)
        restore, group, cache = remembered(module), module.group, module.first.cache
        first = module(x)
        assert not torch.equal(module(x), first), "it keeps something"
        for _ in range(2):
            restore()
            assert torch.equal(module(x), first)
        restore()
    assert module.group is group
    assert module.first.cache is module.second.cache is cache
    assert (cache.length, cache.keys, module.calls, module.seen) == (0, [], 0, {1})
    assert module.window.data_ptr() == module.running[1:].data_ptr()
    assert not hasattr(module, "later")


def test_a_resized_tensor_has_its_old_size() -> None:
    module = nn.Module()
    module.register_buffer("cache", torch.arange(6.0))
    restore = remembered(module)
    module.cache.resize_(2)
    restore()
    assert module.cache.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


class Counting(nn.Module):
    """Its output depends on how often it was called; ranks may keep that in the class, which nothing puts back."""

    total = 0
    outside = False

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.up = nn.Linear(8, 8 // self.group.size, bias=False)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.outside and self.group.size > 1:
            type(self).total += 1
        late = type(self).total > 2  # seen before any rank goes on to its next call
        return self.group.all_gather(self.up(x), -1) * (self.calls + late)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda module: None, Status.PASS),
        (lambda module: setattr(module, "outside", True), Status.MISMATCH),
    ],
    ids=["in-the-module", "in-the-class"],
)
def test_a_module_that_keeps_something_is_repeated_from_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object], status: Status
) -> None:
    sharded = type("Sharded", (Counting,), {})
    change(sharded)
    case = Case(
        name="own",
        reference=Counting,
        sharded=sharded,
        plan={"up.weight": Shard(0)},
        inputs=lambda generator: (torch.randn(4, 8, generator=generator),),
    )
    result = own_ladder(tmp_path, monkeypatch, case, dtypes=("float32",), repeats=3).run("own", 2, repeats=3)
    assert result.status is status
    assert status is Status.PASS or "the module keeps something from call to call" in result.reason
