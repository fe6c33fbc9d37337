"""Routers of any form: on which scores they choose, and that a wrong choice is found whatever the scores are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ladder import own_ladder, own_verdicts
from own_routers import (
    EXPERTS,
    FORMS,
    HIDDEN,
    WRONG,
    K,
    MoE,
    Patch,
    best_by_hand,
    corrected,
    in_groups,
    skipping,
    skipping_at,
    topped,
    verdicts,
)
from torch import nn

from tp_harness.case.case import Case
from tp_harness.case.routing import Router
from tp_harness.case.top_k import Groups
from tp_harness.diagnosis.explain import explain
from tp_harness.errors import UsageError
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.results.result import Status


@pytest.mark.parametrize("returned", [False, True], ids=["taps", "returned"])
@pytest.mark.parametrize("form", FORMS)
def test_a_right_router_of_any_form_passes(tmp_path: Path, monkeypatch: Patch, form: str, returned: bool) -> None:
    routing = (Router("router", outputs=("logits", "weights", "chosen")),) if returned else ("",)
    found = verdicts(tmp_path, monkeypatch, FORMS[form], returned=returned, routing=routing)
    assert {dtype: (r.status, r.reason) for dtype, r in found.items() if r.status is not Status.PASS} == {}


@pytest.mark.parametrize("returned", [False, True], ids=["taps", "returned"])
@pytest.mark.parametrize(
    ("form", "wrong"),
    [*((form, skipping(FORMS[form])) for form in FORMS), *WRONG.items()],
    ids=[*(f"{form}-skipping" for form in FORMS), *WRONG],
)
def test_a_wrong_choice_is_a_mismatch(
    tmp_path: Path, monkeypatch: Patch, form: str, wrong: Any, returned: bool
) -> None:
    routing = (Router("router", outputs=("logits", "weights", "chosen")),) if returned else ("",)
    found = verdicts(tmp_path, monkeypatch, FORMS[form], wrong, returned=returned, routing=routing)
    assert {dtype: r.status for dtype, r in found.items()} == dict.fromkeys(found, Status.MISMATCH)
    assert found["float32"].worst is None or returned, "no element is to blame for a choice"


def test_a_ranking_that_is_not_the_choice_hides_no_wrong_one(tmp_path: Path, monkeypatch: Patch) -> None:
    def counting(choose: Any) -> Any:
        """The same, but the right choice is made once more afterwards, for statistics of the load, say."""

        def choose_and_count(module: Any, logits: torch.Tensor) -> torch.Tensor:
            chosen: torch.Tensor = choose(module, logits)
            corrected(module, logits).topk(K, -1)
            return chosen

        return choose_and_count

    fields: dict[str, Any] = {"returned": True, "routing": (Router("router", outputs=("logits", "_", "chosen")),)}
    right = FORMS["sigmoid-and-correction"]
    found = verdicts(tmp_path / "right", monkeypatch, counting(right), **fields)
    assert {r.status for r in found.values()} == {Status.PASS}
    found = verdicts(tmp_path / "wrong", monkeypatch, counting(right), counting(topped), **fields)
    assert {r.status for r in found.values()} == {Status.MISMATCH}


@pytest.mark.parametrize(
    "router", ["", Router("router", outputs=("logits", "weights", "chosen")), Router("router", outputs=("logits",))]
)
def test_a_router_may_be_given_its_tokens_in_chunks(tmp_path: Path, monkeypatch: Patch, router: Any) -> None:
    fields = {"routing": (router,), "returned": router != "", "chunks": 3}
    form = FORMS["groups-masked-by-infinity"]
    found = verdicts(tmp_path / "right", monkeypatch, form, **fields)
    assert {dtype: (r.status, r.reason) for dtype, r in found.items() if r.status is not Status.PASS} == {}
    for at in range(3):
        found = verdicts(tmp_path / str(at), monkeypatch, form, skipping_at(at, form), **fields)
        assert {r.status for r in found.values()} == {Status.MISMATCH}


def test_a_choice_that_no_call_shows_needs_its_scores(tmp_path: Path, monkeypatch: Patch) -> None:
    def by_hand(module: Any, logits: torch.Tensor) -> torch.Tensor:
        return best_by_hand(module.router_scores(corrected(module, logits)))

    found = verdicts(tmp_path / "right", monkeypatch, by_hand)
    assert {r.status for r in found.values()} == {Status.PASS}

    def unseen(module: Any, logits: torch.Tensor) -> torch.Tensor:
        return best_by_hand(corrected(module, logits))

    with pytest.raises(UsageError) as error:
        verdicts(tmp_path / "unseen", monkeypatch, unseen)
    assert "the choice of the router of own does not follow from router_logits: token " in str(error.value)
    assert "Let what is sorted pass through a submodule `router_scores` of both modules" in str(error.value)


def test_groups_are_declared_where_no_call_shows_them(tmp_path: Path, monkeypatch: Patch) -> None:
    def by_hand(module: Any, logits: torch.Tensor) -> torch.Tensor:
        scores = module.router_scores(corrected(module, logits))
        kept = best_by_hand(scores.unflatten(-1, (4, -1)).sum(-1))
        left_out = torch.ones(len(logits), 4, dtype=torch.bool).scatter(1, kept, value=False)
        return best_by_hand(scores.masked_fill(left_out.repeat_interleave(4, 1), float("-inf")))

    with pytest.raises(UsageError, match="does not follow from router_scores"):
        verdicts(tmp_path / "undeclared", monkeypatch, by_hand)
    routing = (Router("", groups=Groups(count=4, kept=2, best=4)),)
    found = verdicts(tmp_path / "right", monkeypatch, by_hand, routing=routing)
    assert {r.status for r in found.values()} == {Status.PASS}
    found = verdicts(tmp_path / "wrong", monkeypatch, by_hand, FORMS["sigmoid-and-correction"], routing=routing)
    assert {r.status for r in found.values()} == {Status.MISMATCH}


def test_a_wrong_router_is_the_first_wrong_tensor(tmp_path: Path, monkeypatch: Patch) -> None:
    """Without any tap but the router's own."""

    class Shifted(MoE):
        choose, on_ranks = topped, lambda m, x: topped(m, x.roll(1, -1))

    case = Case(
        name="own",
        reference=Shifted,
        sharded=Shifted,
        plan={"up": Shard(2), "down": Shard(1)},
        inputs=lambda generator: (torch.randn(64, HIDDEN, generator=generator),),
        routing=("",),
    )
    for wrong, first in ((Shifted, "chosen"), (_scaled_logits(Shifted), "router_logits")):
        ladder = own_ladder(tmp_path / first, monkeypatch, replace(case, sharded=wrong), dtypes=("float32",))
        result = ladder.run("own", 2)
        found = explain(ladder.evidence("own", 2, taps=True), result).first_divergence
        assert found is not None
        assert found.tensor == first


def _scaled_logits(base: type[MoE]) -> type[MoE]:
    class Scaled(base):  # type: ignore[valid-type, misc]
        on_ranks = None

        def __init__(self) -> None:
            super().__init__()
            if self.group.size > 1:
                self.gate.register_forward_hook(lambda _m, _i, out: 1.5 * out)

    return Scaled


def test_tokens_may_be_shared_out(tmp_path: Path, monkeypatch: Patch) -> None:
    """Each rank routes its own tokens, the rows of the first input that it is given."""

    class Local(nn.Module):
        flips = False

        def __init__(self) -> None:
            super().__init__()
            self.group = current_group()
            self.gate, self.router_logits, self.chosen = nn.Linear(HIDDEN, EXPERTS), nn.Identity(), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(0, 1)
            logits = self.router_logits(self.gate(tokens))
            wrong = self.flips and self.group.rank == 1
            chosen = self.chosen((-logits if wrong else logits).topk(K, -1).indices)
            return (tokens * logits.gather(-1, chosen).sum(-1, keepdim=True)).view(x.shape)

    for flips, status in ((False, Status.PASS), (True, Status.MISMATCH)):
        case = Case(
            name="own",
            reference=Local,
            sharded=type("OnRanks", (Local,), {"flips": flips}),
            input_placements=(Shard(1),),
            output=Shard(1),
            inputs=lambda generator: (torch.randn(2, 32, HIDDEN, generator=generator),),
            routing=("",),
        )
        assert {r.status for r in own_verdicts(tmp_path / str(flips), monkeypatch, case).values()} == {status}


def test_a_router_that_returns_no_choice(tmp_path: Path, monkeypatch: Patch) -> None:
    """As Llama 4 has it: the choice is seen where it is made."""
    routing = (Router("router", outputs=("logits", "weights", "other")),)
    for on_ranks, status in ((None, Status.PASS), (topped, Status.MISMATCH)):
        folder = tmp_path / status.value
        found = verdicts(folder, monkeypatch, in_groups(-1e9), on_ranks, returned=True, routing=routing)
        assert {r.status for r in found.values()} == {status}


def test_a_choice_that_cannot_be_replaced_leaves_bfloat16_undecided(tmp_path: Path, monkeypatch: Patch) -> None:
    """The router returns it, and no call makes it: where rounding chooses other experts, the outputs differ."""
    routing = (Router("router", outputs=("logits", "weights", "chosen")),)

    def chooses(module: Any, logits: torch.Tensor) -> torch.Tensor:
        return best_by_hand(logits)

    def rounds_otherwise(module: Any, logits: torch.Tensor) -> torch.Tensor:
        unit = torch.finfo(logits.dtype).eps
        return best_by_hand(logits * (1 + unit * (torch.arange(EXPERTS) % 3 - 1)))

    found = verdicts(tmp_path / "right", monkeypatch, chooses, rounds_otherwise, returned=True, routing=routing)
    assert [found["float32"].status, found["bfloat16"].status] == [Status.PASS, Status.UNDECIDED]
    assert "router router chose others by rounding, and no torch.topk " in found["bfloat16"].reason
    wrong = lambda module, logits: best_by_hand(-logits)  # noqa: E731
    found = verdicts(tmp_path / "wrong", monkeypatch, chooses, wrong, returned=True, routing=routing)
    assert {r.status for r in found.values()} == {Status.MISMATCH}


@pytest.mark.parametrize("outputs", [("chosen", "chosen"), ("weights", None), ("logits", "chosen", "logits")])
def test_outputs_that_name_nothing_or_twice_are_refused(outputs: Any) -> None:
    with pytest.raises(UsageError, match="a name for each is needed"):
        Router("gate", outputs=outputs)


def test_an_output_that_is_no_choice_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    routing = (Router("router", outputs=("chosen", "weights", "logits")),)
    with pytest.raises(TypeError, match=r"router.chosen of a router is torch.float64 \[256, 16\]; expert numbers"):
        verdicts(tmp_path, monkeypatch, topped, returned=True, routing=routing)
