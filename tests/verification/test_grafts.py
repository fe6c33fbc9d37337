"""Every independent mistake is found, in order, and nothing that only follows from another one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from grafted import all_mistakes, told
from ladder import own_ladder
from torch import nn

from tp_harness.case.case import Case
from tp_harness.diagnosis.trace import graftable
from tp_harness.models.gpt_oss import components
from tp_harness.mutation.bench import Bench
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Partial, Replicate, Shard
from tp_harness.ranks.job import Task
from tp_harness.results.result import Result

TP = 2
RIGHT = "the output is right"


class Net(nn.Module):
    """An MLP, and rows of a table that a router chooses; `wrong` names the places of the ranks' mistakes."""

    wrong: frozenset[str] = frozenset()

    def __init__(self, ranks: int = 1) -> None:
        super().__init__()
        self.ranks = ranks
        self.up, self.down = nn.Linear(12, 32 // ranks), nn.Linear(32 // ranks, 16, bias=False)
        self.gate, self.table = nn.Linear(16, 8), nn.Embedding(8, 16)
        self.bias = nn.Parameter(torch.zeros(16))
        self.hidden, self.partial, self.total, self.rows = (nn.Identity() for _ in range(4))
        self.router_logits, self.chosen = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x))
        hidden = self.hidden(hidden + 0.1 * hidden.square() if "hidden" in self.wrong else hidden)
        partial = self.down(hidden)
        if "partial" in self.wrong and current_group().rank == 1:
            partial = partial + 0.1 * partial.square()
        total = self.total(self.reduce(self.partial(partial)))
        logits = self.router_logits(self.gate(total) + ("logits" in self.wrong) * 0.1 * total.flip(-1)[..., :8])
        best = logits.flip(-1) if "choice" in self.wrong else logits
        chosen = self.chosen(best.flatten(0, -2).topk(2, -1).indices)
        rows = self.table(chosen).sum(-2).view(total.shape)
        rows = self.rows(rows + 0.1 * rows.square() if "rows" in self.wrong else rows)
        return total + rows + self.bias * (1.5 if "output" in self.wrong else 1.0)

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        total = x if self.ranks == 1 else current_group().all_reduce(x)
        return total.flip(-1) if "total" in self.wrong else total


TAPS = {"hidden": Shard(-1), "partial": Partial(), "total": Replicate(), "rows": Replicate()}
ORDER = {
    "hidden": "hidden",
    "partial": "partial",
    "total": "total",
    "logits": "router_logits",
    "choice": "chosen",
    "rows": "rows",
    "output": "output.0",
}


def case(*wrong: str, **changes: Any) -> Case:
    class Wrong(Net):
        def __init__(self) -> None:
            super().__init__(current_group().size)
            self.wrong = frozenset(wrong)

    fields: dict[str, Any] = {
        "name": "own",
        "reference": Net,
        "sharded": Wrong,
        "plan": {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)},
        "inputs": lambda g: (torch.randn(2, 8, 12, generator=g),),
        "taps": TAPS,
        "routing": ("",),
    }
    return Case(**(fields | changes))


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    benches: dict[str, Bench] = {}  # one for all cases with the same reference

    def find(own: Case, dtype: str = "float32", starts: list[str] | None = None) -> Result:
        monkeypatch.setitem(components.COMPONENTS, "own", lambda _config, _layer: own)
        same = f"{dtype} {own.reference} {own.taps} {own.routing}"
        if same not in benches:
            folder = tmp_path / str(len(benches))
            benches[same] = own_ladder(folder, monkeypatch, own, dtypes=(dtype,)).bench
        return all_mistakes(benches[same], Task(component="own", layer=0, draw=0, dtype=dtype), TP, starts)

    return find


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mistake is known, so that none is told from another by its cause."""
    monkeypatch.setattr("tp_harness.diagnosis.explain.all_signatures", lambda: ())


@pytest.mark.usefixtures("nameless")
@pytest.mark.parametrize(
    ("dtype", "counts"), [("exact", (0, 1, 2, 7)), ("float32", (0, 1, 2, 3, 7)), ("bfloat16", (0, 1, 7))]
)
def test_each_set_of_independent_mistakes_is_listed_in_order(
    found: Callable[..., Result], dtype: str, counts: tuple[int, ...]
) -> None:
    for count in counts:
        for places in combinations(ORDER, count):
            result = found(case(*places), dtype)
            assert result.status.passed == (not places) or places == ("logits",), places
            assert told(result) == [(ORDER[place],) for place in places], places
            if count and places[0] != "output":
                put = "with it put right, " if count == 1 else "with these put right, "
                assert result.put_right == put + ("everything else is right" if "output" in places else RIGHT), places


@pytest.mark.usefixtures("nameless")
@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_any_number_of_mistakes_costs_at_most_two_more_starts(found: Callable[..., Result], dtype: str) -> None:
    for places, expected in (
        (("hidden",), ["grafts"]),
        (("output",), []),
        (("hidden", "total", "rows", "output"), ["grafts", "all-grafts"]),
    ):
        starts: list[str] = []
        found(case(*places), dtype, starts)
        assert starts == expected


@pytest.mark.usefixtures("nameless")
@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_a_tap_that_the_case_places_wrongly_is_not_put_right_with_wrong_values(
    found: Callable[..., Result], dtype: str
) -> None:
    slip = TAPS | {"hidden": Shard(1)}
    result = found(case("total", "rows", taps=slip), dtype)
    assert (told(result), result.put_right) == ([("total",), ("rows",)], f"with these put right, {RIGHT}")


@pytest.mark.usefixtures("nameless")
@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_nothing_false_is_said_where_nothing_can_be_put_right(found: Callable[..., Result], dtype: str) -> None:
    without = found(case("hidden", "output", taps={}, routing=()), dtype)
    assert (told(without), without.put_right) == ([("output.0",)], "")

    class Long(Net):
        def __init__(self) -> None:
            super().__init__(current_group().size)
            self.total = nn.ConstantPad1d((0, 2), 0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[..., :16]

    class Cut(Long):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.register_forward_hook(lambda _module, _inputs, output: output)
            total = self.total(self.reduce(self.partial(self.down(self.hidden(torch.relu(self.up(x)))))))[..., :16]
            return self.rows(total * 2)

    other_shape = found(case(sharded=Cut, routing=()), dtype)
    assert told(other_shape) == [("total",)]
    assert other_shape.put_right == ("no right value fits the place of total: further mistakes were not looked for")


@pytest.mark.usefixtures("nameless")
@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_what_remains_wrong_is_said(found: Callable[..., Result], dtype: str) -> None:
    """A module that is right when its total was put right, and wrong otherwise."""

    class Moody(Net):
        def __init__(self) -> None:
            super().__init__(current_group().size)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.up(x))
            passed = self.hidden(hidden + 0.1 * hidden.square())
            own = self.reduce(self.partial(self.down(passed)))
            total = self.total(own)
            return self.rows(2 * total if total is own else total)

    class Plain(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = self.total(self.partial(self.down(self.hidden(torch.relu(self.up(x))))))
            return self.rows(total)

    result = found(case(reference=Plain, sharded=Moody, routing=()), dtype)
    assert told(result) == [("hidden",)]
    assert result.put_right == "with it put right, rows, output.0 are still wrong, for a reason that was not found"


@pytest.mark.usefixtures("nameless")
def test_what_float64_cannot_tell_from_right_is_neither_a_mistake_nor_right(found: Callable[..., Result]) -> None:
    class Nearly(Net):
        def __init__(self) -> None:
            super().__init__(current_group().size)
            self.wrong = frozenset({"hidden"})

        def reduce(self, x: torch.Tensor) -> torch.Tensor:
            return super().reduce(x) * (1 + 1e-14)

    result = found(case(sharded=Nearly), "exact")
    assert told(result) == [("hidden",)]
    assert result.put_right.startswith(
        "with it put right, nothing else is known to be wrong, and the rest is not proved: 256 of 256 residues of "
        "output.0 differ while float64 agrees to "
    )
    assert found(case(sharded=Nearly)).put_right == f"with it put right, {RIGHT}"


@pytest.mark.usefixtures("nameless")
def test_what_left_exact_arithmetic_is_not_called_right(found: Callable[..., Result]) -> None:
    class Printing(Net):
        def __init__(self) -> None:
            super().__init__(current_group().size)
            self.wrong = frozenset({"partial", "rows"})

        def reduce(self, x: torch.Tensor) -> torch.Tensor:
            str(x)
            return super().reduce(x)

    result = found(case(sharded=Printing), "exact")
    assert told(result) == [("partial",), ("rows",)]
    escape = "on rank 0, __repr__() made text of elements"
    said = "with these put right, nothing else is known to be wrong, and the rest is not proved: "
    assert result.put_right == said + escape


def test_a_choice_is_put_right_by_the_lock_in_exact_arithmetic_if_both_references_chose_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps = ["hidden", "partial", "total", "router_logits", "chosen", "rows"]
    for dtype in ("exact", "float32"):
        evidence = own_ladder(tmp_path / dtype, monkeypatch, case(), dtypes=(dtype,)).evidence(
            "own", TP, dtype, taps=True
        )
        tapped = evidence.expectation.run_tapped(dtype)
        assert list(graftable(evidence, tapped)) == [name for name in taps if (name, dtype) != ("chosen", "float32")]
        evidence.expectation.oracle.routing["chosen"][3] += 1
        assert list(graftable(evidence, tapped)) == [name for name in taps if name != "chosen"]
