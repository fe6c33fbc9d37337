"""Causes in exact arithmetic: a mistake is named where it gives the very residues, and then nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import BLANK, Patch, explained
from ladder import Ladder, mistake, own_ladder
from torch import nn

from tp_harness.case.case import Case
from tp_harness.diagnosis import Guess, Signature, Site, all_signatures
from tp_harness.diagnosis.explain import explain
from tp_harness.faults import find_fault
from tp_harness.faults.ways import Apply, edits, passes
from tp_harness.judge.judge import judge
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.report.failure_text import diagnosis_text
from tp_harness.results.result import Result, Status

CERTAIN = "not equal, and this known mistake gives exactly these residues"


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("ladder"), dtypes=("exact",))


def told(ladder: Ladder, fault: Any, tp: int, signatures: tuple[Signature, ...] | None = None) -> Result:
    """What is said of a fault at a degree."""
    evidence = ladder.evidence(fault.component, tp, "exact", layer=fault.layer, fault=fault, taps=True)
    return explain(evidence, replace(BLANK, dtype="exact", tp=tp), signatures)


@pytest.mark.parametrize(
    "name",
    [
        "concentration-missing",  # tables that were rounded to float32
        "window-too-short",  # exponents of what a softmax is given
        "scale-of-local-heads",  # the root of a number that is no square
        "mlp2-bias-by-tp",  # a quotient of 16-bit numbers
        "mask-missing",  # a product of 16-bit numbers with truth values
        "summed-in-16-bits",  # roundings
        "vocabulary-tail-dropped",
        "rows-of-next-rank",  # its sum over ranks is that of another mistake, too
        "stale-shard-of-last-rank",
    ],
)
def test_a_known_mistake_gives_the_residues(ladder: Ladder, name: str) -> None:
    fault = find_fault(name)
    result = told(ladder, fault, 2)
    assert [(cause.name, cause.exact) for cause in result.diagnosis] == [(fault.signature, True)]
    assert all(CERTAIN in line for line in diagnosis_text(result))


def biased(factor: float) -> Apply:
    """A bias that is added `factor` times."""

    def edit(module: Any, _group: Any) -> None:
        bias = module.out.bias.to(torch.float32)
        module.reduced.register_forward_hook(lambda _module, _inputs, output: output + bias * (factor - 1))

    return edits(edit)


@pytest.mark.parametrize(("factor", "causes"), [(8.0, ["bias x tp"]), (8.0 * (1 + 2.0**-47), [])])
def test_what_is_like_a_mistake_and_has_other_residues_is_not_named(
    ladder: Ladder, factor: float, causes: list[str]
) -> None:
    result = told(ladder, mistake(biased(factor), "attention"), 8)
    assert [cause.name for cause in result.diagnosis] == causes
    assert ("bias x tp" in result.refuted) == (not causes)


def by_least_squares(site: Site) -> Iterator[Guess]:
    """What is right times a factor that exact arithmetic loses."""
    full, right = (x.reshape(-1, 1) for x in (site.traced.full, site.right))
    factor = torch.linalg.lstsq(right, full.to(torch.float64)).solution
    yield Guess(site.right * factor)


def test_a_guess_without_residues_is_named_by_its_shadow_and_not_as_certain(ladder: Ladder) -> None:
    fitted = Signature(name="fitted", sentence="it is fitted", guess=by_least_squares)
    result = told(ladder, mistake(passes("reduced", lambda x, group: x * 3), "attention"), 2, (fitted,))
    assert [(cause.name, cause.exact) for cause in result.diagnosis] == [("fitted", False)]
    assert not any(CERTAIN in line for line in diagnosis_text(result))
    assert diagnosis_text(result)[0].startswith("likely cause: fitted")
    certain = told(ladder, mistake(passes("reduced", lambda x, group: x * 3), "attention"), 2)
    assert [(cause.name, cause.exact) for cause in certain.diagnosis] == [("scaled", True)]
    both = told(ladder, mistake(passes("reduced", lambda x, group: x * 3), "attention"), 2, (fitted, *all_signatures()))
    assert [cause.name for cause in both.diagnosis] == ["scaled"], "a certain cause leaves no room for likely ones"


class Gated(nn.Module):
    """x + down(relu(a x) * b x), with the features of a and b fused and cut over ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        size = self.group.size
        self.fused, self.down = nn.Linear(12, 48 // size), nn.Linear(24 // size, 12, bias=False)
        self.inner = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.fused(x).unflatten(-1, (-1, 2)).unbind(-1)
        return x + self.group.all_reduce(self.down(self.inner(self.gated(a, b))))

    def gated(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(a) * b


GATED = Case(
    name="own",
    reference=Gated,
    sharded=Gated,
    inputs=lambda generator: (torch.randn(2, 24, 12, generator=generator),),
    plan={"fused.weight": Shard(0, 2), "fused.bias": Shard(0, 2), "down.weight": Shard(1)},
    taps={"inner": Shard(-1)},
)


def test_the_reference_with_changed_parameters_gives_the_residues(tmp_path: Path, monkeypatch: Patch) -> None:
    wrong = lambda patch: patch.setattr(Gated, "gated", lambda m, a, b: torch.relu(b) * a)  # noqa: E731
    case = replace(GATED, taps={})
    result = explained(tmp_path, monkeypatch, case, 4, wrong, dtype="exact")
    assert ("fused parts exchanged", True) in [(cause.name, cause.exact) for cause in result.diagnosis]


def rewritten(m: Gated, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The same function, by an identity that exact arithmetic does not know."""
    one = b.sin().square() + b.cos().square()
    return torch.relu(a) * b * (one if m.group.size > 1 else 1.0)


def test_the_first_unequal_tensor_of_what_is_not_proved_is_told_and_not_called_wrong(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    own = own_ladder(tmp_path, monkeypatch, GATED, dtypes=("exact",))
    monkeypatch.setattr(Gated, "gated", rewritten)
    evidence = own.evidence("own", 4, "exact", taps=True)
    verdict = judge(evidence, replace(BLANK, dtype="exact", tp=4))
    assert verdict.status is Status.NOT_PROVED and verdict.proof is not None
    assert (verdict.proof.unequal, verdict.proof.first) == (("output.0",), "")
    result = explain(evidence, verdict)
    said = "the first tensor whose residues are not equal is inner on ranks 0-3"
    assert result.proof is not None and result.proof.first == said
    assert result.reason == f"{verdict.reason}; {said}"
    assert result.first_divergence is None and result.status is Status.NOT_PROVED


def test_a_tensor_that_float64_does_not_tell_from_the_right_one_is_not_the_first_wrong_one(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    def wrong(patch: Patch) -> None:
        patch.setattr(Gated, "gated", rewritten)
        forward = Gated.forward
        patch.setattr(Gated, "forward", lambda m, x: forward(m, x) + x * (m.group.size - 1))

    result = explained(tmp_path, monkeypatch, GATED, 4, wrong, dtype="exact")
    assert result.first_divergence is not None and result.first_divergence.tensor == "output.0"
    assert result.diagnosis and not any(cause.exact for cause in result.diagnosis), "residues tell nothing after that"
