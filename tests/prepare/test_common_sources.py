"""Which tensors of a reference have something in common that no tap shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from ladder import Ladder, own_ladder
from torch import nn

from tp_harness.case.case import Case
from tp_harness.parallel.placements import Replicate
from tp_harness.prepare.common_sources import common_sources


def shared(sources: Mapping[str, Any]) -> set[tuple[str, str]]:
    pairs = combinations(sources, 2)
    return {(a, b) for a, b in pairs if not sources[a].isdisjoint(sources[b])}


def of(ladder: Ladder, name: str) -> set[tuple[str, str]]:
    expected = ladder.evidence(name, 1, taps=True).expectation
    parameters = list(expected.reference.parameters())
    parameters[0].requires_grad_(False)
    before = [p.requires_grad for p in parameters]
    sources = common_sources(expected.case, expected.run_tapped("float32"), expected.locks)
    assert [p.requires_grad for p in parameters] == before, "the reference is left as it was"
    return shared(sources)


def test_a_projection_s_parts_and_what_the_router_weighs_have_a_source_in_common(tmp_path: Path) -> None:
    ladder = Ladder(tmp_path)
    assert of(ladder, "attention") == {("q_rope", "k_rope"), ("q_rope", "value"), ("k_rope", "value")}
    assert of(ladder, "mlp") == {("chosen", "partial"), ("chosen", "combined"), ("partial", "combined")}
    assert not of(ladder, "embedding")


class Tied(nn.Module):
    """One weight in two places, and one value that is written to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8, 8))
        self.one, self.two, self.three = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x @ self.weight)
        two = self.two((one @ self.other).relu_())
        two += 1
        return self.three(two @ self.weight)


class Blind(Tied):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(x)


@pytest.fixture
def sources_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[nn.Module]], set[tuple[str, str]]]:
    def find(module: type[nn.Module]) -> set[tuple[str, str]]:
        case = Case(
            name="own",
            reference=module,
            sharded=module,
            inputs=lambda g: (torch.randn(4, 8, generator=g),),
            taps={name: Replicate() for name in ("one", "two", "three")},
        )
        expected = own_ladder(tmp_path / module.__name__, monkeypatch, case).evidence("own", 1, taps=True).expectation
        return shared(common_sources(case, expected.run_tapped("float32"), expected.locks))

    return find


def test_a_weight_in_two_places_is_a_common_source(sources_of: Callable[..., set[tuple[str, str]]]) -> None:
    assert sources_of(Tied) == {("one", "three")}


def test_without_gradients_nothing_is_known(sources_of: Callable[..., set[tuple[str, str]]]) -> None:
    assert sources_of(Blind) == set()
