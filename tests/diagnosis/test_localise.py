"""Where it went wrong first: right tensors are passed over, the wrong one is named with ranks, index and token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import IN_FLOATS, Harness
from ladder import TARGETS, TINY, Ladder, Ranks, mistake

from tp_harness.case.taps import tapping
from tp_harness.diagnosis.localise import first_divergence
from tp_harness.diagnosis.trace import trace
from tp_harness.faults import find_fault
from tp_harness.faults.ways import all_of, runs
from tp_harness.judge.evidence import Evidence
from tp_harness.models.gpt_oss.modules import mlp
from tp_harness.parallel.placements import Replicate
from tp_harness.prepare.oracle import Tapped
from tp_harness.ranks.rank_report import TensorKey
from tp_harness.report.failure_text import divergence_text
from tp_harness.results.result import Divergence

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("ladder"))


def tapped(evidence: Evidence) -> Tapped:
    return evidence.expectation.run_tapped(evidence.dtype)


def locate(evidence: Evidence) -> Divergence | None:
    found = first_divergence(evidence, tapped(evidence))
    return found and found[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "layer"), TARGETS, ids=[f"{name}{layer}" for name, layer in TARGETS])
@pytest.mark.parametrize("tp", [1, 2, 32], ids="tp{}".format)
def test_no_tensor_of_a_clean_run_is_named_and_every_tap_is_seen(
    ladder: Ladder, name: str, layer: int, tp: int, dtype: str
) -> None:
    evidence = ladder.evidence(name, tp, dtype, layer=layer, taps=True)
    assert locate(evidence) is None
    outputs = list(evidence.outputs)
    assert [traced.name for traced in trace(evidence, tapped(evidence))] == [*evidence.case.taps, *outputs]


def test_taps_are_named_in_order_of_execution(ladder: Ladder) -> None:
    tensors = ladder.evidence("transformer", 2, layer=0, taps=True).ranks[0].tensors
    case = ladder.evidence("transformer", 2).case
    assert [key for key in tensors if key.variant == "tap"]
    seen: list[str] = []
    module = case.reference()
    for name in case.taps:
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    module(torch.zeros(1, 4, dtype=torch.int64))
    assert list(dict.fromkeys(seen)) == list(case.taps)


def test_taps_that_are_off_cost_nothing(ladder: Ladder, monkeypatch: Patch) -> None:
    """No hook is set, and a rank writes nothing more."""
    asked: list[tuple[str, ...]] = []
    honest = tapping

    def spied(module: Any, names: Any, *how: Any) -> Any:
        asked.append(tuple(names))
        return honest(module, names, *how)

    monkeypatch.setattr("tp_harness.ranks.rank.tapping", spied)
    left = ladder.evidence("mlp", 2).ranks[0].tensors
    assert set(asked) == {()}
    assert not [key for key in left if key.variant == "tap"]


# fmt: off
WHERE: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "norm-eps-in-attention": ("norm", "", tuple(range(8))),
    "gamma-of-one-rank-in-attention": ("norm", "", (7,)),
    "query-bias-of-rank-0": ("q_rope", "norm", tuple(range(1, 8))),
    "key-bias-dropped": ("k_rope", "q_rope", tuple(range(8))),
    "value-bias-dropped": ("value", "k_rope", tuple(range(8))),
    "window-too-short": ("heads", "value", tuple(range(8))),
    "sinks-of-rank-0": ("heads", "value", tuple(range(1, 8))),
    "heads-reversed": ("partial", "heads", tuple(range(8))),
    "not-reduced": ("total", "partial", tuple(range(8))),
    "last-rank-dropped": ("total", "partial", tuple(range(8))),
    "out-bias-x-tp": ("reduced", "total", tuple(range(8))),
    "router-bias-dropped": ("router_logits", "norm", tuple(range(8))),
    "mlp1-bias-of-rank-0": ("gate_up", "chosen", tuple(range(1, 8))),
    "clamp-missing": ("activation", "gate_up", tuple(range(8))),
    "gate-clamp-symmetric": ("activation", "gate_up", tuple(range(8))),
    "mlp2-of-next-rank": ("partial", "activation", tuple(range(8))),
    "mlp2-bias-dropped": ("combined", "total", tuple(range(8))),
    "one-rank-s-last-bit": ("combined", "total", (7,)),
    "mlp2-bias-unweighted": ("combined", "total", tuple(range(8))),
    "logits-gathered-backwards": ("output.0", "unembedding.logits", tuple(range(8))),
    "logits-not-gathered": ("output.0", "unembedding.logits", (0,)),
    "bounds-of-rank-0": ("partial", "", tuple(range(8))),
}
# fmt: on


@pytest.mark.parametrize("name", WHERE)
def test_the_first_wrong_tensor_and_its_ranks(ladder: Ladder, name: str) -> None:
    fault = find_fault(name)
    found = locate(ladder.evidence(fault.component, 8, layer=fault.layer, fault=fault, taps=True))
    assert found is not None
    assert (found.tensor, found.after, found.ranks) == WHERE[name]


def test_the_layer_is_named_in_a_whole_model(ladder: Ladder) -> None:
    """Wrong in every layer; the first is meant."""
    scaled = [
        runs(f"block.{layer}.mlp", "_swiglu", lambda self, x: 1.5 * type(self)._swiglu(self, x))
        for layer in range(TINY.num_hidden_layers)
    ]
    for dtype in ("float32", "bfloat16"):
        found = locate(ladder.evidence("transformer", 2, dtype, fault=mistake(all_of(*scaled)), taps=True))
        assert found is not None
        assert (found.tensor, found.after) == ("block.0.mlp.activation", "block.0.mlp.gate_up")


def spoil_tap(name: str, rank: int, change: Callable[[torch.Tensor], object]) -> Callable[[Ranks], object]:
    return lambda ranks: change(ranks[rank].tensors[TensorKey("float32", "tap", name)])


def test_index_token_and_numbers_of_one_element(ladder: Ladder) -> None:
    """Rank 6 of 8 holds query heads 48 to 55; its head 3 is 51."""
    spoil = spoil_tap("q_rope", 6, lambda x: x[1, 20, 3].__setitem__(5, 9.0))
    evidence = ladder.evidence("attention", 8, taps=True, spoil=spoil)
    found = locate(evidence)
    assert found is not None
    assert (found.tensor, found.kind, found.ranks, found.index) == ("q_rope", "value", (6,), (1, 20, 51, 5))
    assert (found.token, found.actual) == ((1, 20), 9.0)
    assert found.expected == tapped(evidence).oracle.taps["q_rope"][1, 20, 51, 5]
    text = divergence_text(found)
    assert text.startswith("q_rope on rank 6; ")
    assert "worst at [1, 20, 51, 5] (token 20 of row 1): 9 instead of " in text
    assert text.endswith("; norm before it is right")


def test_the_token_behind_an_expert_s_row(ladder: Ladder) -> None:
    spoil = spoil_tap("activation", 3, lambda x: x[77].__setitem__(2, 500.0))
    evidence = ladder.evidence("mlp", 8, taps=True, spoil=spoil)
    found = locate(evidence)
    chosen = tapped(evidence).oracle.taps["chosen"].flatten(0, 1).tolist()
    rows = [(e, t) for e in range(8) for t, experts in enumerate(chosen) if e in experts]
    assert found is not None
    assert found.index == (77, 3 * 20 + 2)
    assert found.token == divmod(rows[77][1], 24)


def test_a_nan_is_found_before_anything_it_spoils(ladder: Ladder) -> None:
    spoil = spoil_tap("heads", 2, lambda x: x[0, 3].__setitem__(7, math.nan))
    found = locate(ladder.evidence("attention", 8, taps=True, spoil=spoil))
    assert found is not None
    assert (found.tensor, found.kind, found.ranks, found.index) == ("heads", "nonfinite", (2,), (0, 3, 2 * 128 + 7))


def test_a_last_bit_of_one_replica_is_found(ladder: Ladder) -> None:
    """KV head 1 lives on ranks 4 to 7 of 32."""
    spoil = spoil_tap("k_rope", 6, lambda x: x.view(torch.int32).view(-1)[100:101].bitwise_xor_(1))
    found = locate(ladder.evidence("attention", 32, taps=True, spoil=spoil))
    assert found is not None
    assert (found.tensor, found.kind, found.ranks) == ("k_rope", "replicas", (6,))


def test_another_choice_of_experts_is_named_at_the_choice(ladder: Ladder, monkeypatch: Patch) -> None:
    """The logits are right; the routing is locked, so that nothing after them is wrong."""

    def route(self: Any, logits_TE: torch.Tensor) -> torch.Tensor:
        logits = self.router_logits(logits_TE)
        chosen = self.chosen(torch.topk(-logits, 4).indices)
        return torch.zeros_like(logits).scatter(-1, chosen, torch.softmax(logits.gather(-1, chosen), -1))

    monkeypatch.setattr(mlp.NeuronGPTOSSMLPBlock, "_route", route)
    for dtype in ("float32", "bfloat16"):
        found = locate(ladder.evidence("mlp", 2, dtype, taps=True))
        assert found is not None
        assert (found.tensor, found.kind, found.ranks) == ("chosen", "choice", (0, 1))
        assert "a margin of " in divergence_text(found)


def test_a_tap_that_a_side_lacks_is_passed_over(ladder: Ladder) -> None:
    evidence = ladder.evidence("mlp", 2, taps=True)
    evidence = replace(evidence, case=replace(evidence.case, taps={"absent": Replicate(), **evidence.case.taps}))
    for output in evidence.ranks.values():
        del output.tensors[TensorKey("float32", "tap", "gate_up")]  # type: ignore[attr-defined]  # a dict here
    assert locate(evidence) is None
    names = [traced.name for traced in trace(evidence, tapped(evidence))]
    assert names == [name for name in evidence.case.taps if name not in ("absent", "gate_up")] + ["output.0"]


def test_a_whole_run_names_it_and_runs_taps_only_then(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    patch = "from tp_harness.models.gpt_oss.modules.mlp import NeuronGPTOSSMLPBlock as M\nhonest = M._swiglu\n"
    patch += "M._swiglu = lambda self, x: honest(self, x) * 1.5\n"
    options = ["--component", "mlp", "--component", "rmsnorm", "--tp", "2", "--draws", "2", *IN_FLOATS]
    assert harness.code(*options, patch=patch) == 1
    results = harness.record()["results"]
    assert [(r["component"], r["status"]) for r in results] == [("mlp", "MISMATCH")] * 2 + [("rmsnorm", "PASS")] * 2
    for result in results[:2]:
        found = result["first_divergence"]
        assert (found["tensor"], found["after"], found["ranks"]) == ("activation", "gate_up", [0, 1])
    assert [result["first_divergence"] for result in results[2:]] == [None, None]
    assert (Path(results[0]["log_dir"]).parent / "tp2-taps").is_dir()
    harness.nothing_is_left()
