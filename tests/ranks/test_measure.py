"""What a forward costs: times, FLOPs and memory are those of the thing measured, and never part of a verdict."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ladder import Ladder
from torch.utils.flop_counter import FlopCounterMode

from tp_harness.backends.local_group import LocalGroup
from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.components import COMPONENTS, component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.parallel.group import Group
from tp_harness.ranks.measure import FlopCount, PeakMemory, Stopwatch, count_flops
from tp_harness.results.result import Collective, Forwards, RankRecord, Status

MIB = 1 << 20


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("measure"), targets=(("mlp", 0), ("attention", 0), ("rmsnorm", 0)))


def forwards(rank: RankRecord) -> Iterator[tuple[float, float, float]]:
    assert rank.forwards
    yield from zip(rank.forwards.wall_s, rank.forwards.cpu_s, rank.forwards.collective_s, strict=True)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are timed, whatever their times are worth where ranks take turns."""
    monkeypatch.setattr(LocalGroup, "timed", True)


@pytest.mark.usefixtures("timed")
def test_the_judged_forward_is_timed_and_said_to_be_cold(ladder: Ladder) -> None:
    for rank in ladder.run("mlp", 2).ranks:
        assert rank.forwards and not rank.forwards.warm
        [(wall, _cpu, collective)] = forwards(rank)
        assert 0 < collective < wall < rank.wall_s
        assert rank.flops is None


@pytest.mark.usefixtures("timed")
def test_repeats_are_timed_after_it_and_flops_counted(ladder: Ladder) -> None:
    single, result = ladder.run("attention", 2), ladder.run("attention", 2, repeats=3)
    assert result.status is Status.PASS
    assert result.gates == single.gates  # the judged forward is the same
    for rank, before in zip(result.ranks, single.ranks, strict=True):
        assert rank.forwards and rank.forwards.warm
        assert len(list(forwards(rank))) == 3
        assert all(0 < collective < wall for wall, _cpu, collective in forwards(rank))
        assert rank.collectives == before.collectives
        assert all(call.seconds and call.seconds > 0 for call in rank.collectives)


def test_flops_of_all_ranks_show_what_is_replicated(ladder: Ladder) -> None:
    def total(name: str, tp: int) -> int:
        return sum(rank.flops or 0 for rank in ladder.run(name, tp, repeats=1).ranks)

    tokens, config = 48, PRESETS["tiny"]
    router = 2 * tokens * config.hidden_size * config.num_experts
    weighted_bias = 2 * tokens * config.num_experts * config.hidden_size
    assert total("mlp", 2) == total("mlp", 1) + router + weighted_bias  # both replicated, all else cut
    assert total("attention", 2) == total("attention", 1)
    assert total("rmsnorm", 2) == 0


@pytest.mark.parametrize("name", COMPONENTS)
def test_flops_are_those_of_torchs_own_counter(name: str) -> None:
    torch.manual_seed(0)
    config = InferenceConfig.of(PRESETS["tiny"], NeuronConfig(batch_size=2, seq_len=24, torch_dtype="float32"))
    case = component_case(name, config, 0)
    module, calls = case.sharded(), case.given(torch.Generator().manual_seed(0))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        calls.run(module)
    with torch.inference_mode():
        assert count_flops(lambda: calls.run(module)) == counter.get_total_flops()


def test_flops_of_a_known_product() -> None:
    x, y = torch.ones(4, 8), torch.ones(8, 16)
    with torch.inference_mode(), FlopCount() as count:
        torch.nn.functional.linear(x, y.T)
        torch.einsum("ab,bc->ac", x, y)
        _ = x + 1
    assert count.flops == 2 * (2 * 4 * 8 * 16)


def call(seconds: float | None, kind: str = "all_reduce") -> Collective:
    return Collective(kind=kind, group_size=2, shape=(1,), dtype="float32", bytes=4, seconds=seconds)


def test_repeats_begin_together_and_each_call_gets_its_median() -> None:
    times = iter((9.0, 0.3, 0.1, 0.2))
    watch, met = Stopwatch(Group()), []
    watch.group.meet = lambda: met.append(len(watch.wall_s))  # type: ignore[method-assign]

    def forward() -> tuple[None, tuple[Collective, ...]]:
        return None, (call(next(times)), call(0.5))

    _, judged = watch.time(forward)
    watch.repeat(forward, 3)
    assert met == [0, 1, 2]
    assert [each.seconds for each in watch.timed(judged)] == [0.2, 0.5]
    assert watch.forwards(warm=True).collective_s == (0.8, 0.6, 0.7)


def test_another_schedule_or_untimed_calls_give_no_times() -> None:
    watch = Stopwatch(Group())
    watch.time(lambda: (None, (call(None), call(0.5))))
    assert watch.forwards(warm=False).collective_s == ()
    other = (call(0.1, "broadcast"),)
    assert watch.timed(other)[0].seconds == 0.1  # its own, not that of a call which it is not


def test_a_call_that_builds_a_program_is_not_timed() -> None:
    watch = Stopwatch(Group())
    watch.time(lambda: (None, ()))
    assert watch.forwards(warm=False, eager=False) == Forwards(wall_s=(), cpu_s=())
    watch.repeat(lambda: (None, ()), 2)
    found = watch.forwards(warm=True, eager=False)
    assert (len(found.wall_s), found.cpu_s) == (2, ())


def test_cpu_time_is_that_of_the_given_clock() -> None:
    readings = iter((5.0, 7.5))
    watch = Stopwatch(Group(), lambda: next(readings))
    began = time.perf_counter()
    watch.time(lambda: (None, ()))
    assert watch.cpu_s == [2.5]
    assert 0 < watch.wall_s[0] <= time.perf_counter() - began


def test_time_is_no_part_of_a_collectives_identity() -> None:
    assert call(0.1) == call(0.2) == call(None)
    assert call(0.1) != call(0.1, "broadcast")


class Doubling(Group):
    """The first of two ranks, whose partner always brings the same."""

    def __init__(self, *, timed: bool) -> None:
        super().__init__(0, 2)
        self.timed, self.reduced = timed, 0

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.reduced += 1
        return 2 * x


@pytest.mark.parametrize("timed", [True, False])
def test_a_group_whose_calls_run_later_has_no_times(timed: bool) -> None:
    group = Doubling(timed=timed)
    assert group.all_reduce(torch.ones(3)).tolist() == [2, 2, 2]
    group.meet()
    assert group.reduced == 1 + timed
    [recorded] = group.take_calls()  # meeting is not recorded
    assert (recorded.seconds is not None) == timed


def test_a_call_that_fails_is_on_record() -> None:
    group = Group(0, 2)
    with pytest.raises(NotImplementedError):
        group.all_gather(torch.ones(3), dim=0)
    assert [each.kind for each in group.take_calls()] == ["all_gather"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_begins_anew() -> None:
    memory = PeakMemory()
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    peak = memory.peak_bytes()
    assert peak >= memory.begin_bytes + 60 * MIB
    assert memory.peak_bytes() >= peak - MIB  # it is the peak, not what is held
    del block
    memory.start()
    assert memory.peak_bytes() < peak - 30 * MIB


def test_counting_and_recording_import_neither_dynamo_nor_sympy() -> None:
    text = """
import sys, torch
from tp_harness.ranks.measure import FlopCount
from tp_harness.parallel.collective_recorder import CollectiveRecorder
for mode in (FlopCount(), CollectiveRecorder()):
    with torch.inference_mode(), mode:
        x = torch.ones(2, 3, 3)
        torch.einsum("abc,cd->abd", torch.nn.functional.linear(x @ x, x[0]), x[0]).softmax(-1)
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
