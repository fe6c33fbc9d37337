"""The page about other checks is of this version's faults and checks, and each of those checks can fail and pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tp_harness.cli import main
from tp_harness.faults import FAULTS
from tp_harness.mutation import checks_comparison
from tp_harness.mutation.checks_page import Contest, Entry, page
from tp_harness.mutation.other_checks import EXACTLY, OURS, PEERS, Peer, Seen
from tp_harness.results.from_json import from_json
from tp_harness.version import __version__

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "is not current: run `tp-harness checks --page docs/checks.md`"


def stored() -> Contest:
    return from_json(Contest, json.loads((DOCS / "checks.json").read_text()))


def test_the_page_is_current() -> None:
    contest = stored()
    assert page(contest) == (DOCS / "checks.md").read_text(), f"docs/checks.md {AGAIN}"
    assert contest.checks == (*(peer.name for peer in PEERS), EXACTLY, OURS), f"docs/checks.json {AGAIN}"
    assert contest.faults == tuple(fault.name for fault in FAULTS), f"docs/checks.json {AGAIN}"
    assert contest.version == __version__, f"docs/checks.json {AGAIN}"


def test_every_fault_takes_part_at_every_degree_where_it_is_active_or_is_inert_there() -> None:
    contest = stored()
    for tp in {entry.tp for entry in contest.entries}:
        there = {entry.fault for entry in contest.entries if entry.tp == tp and entry.fault}
        assert there <= set(contest.faults)
        assert len(there) > 0.9 * len(contest.faults), f"too few faults change anything at tp {tp}"


def seen(change: float, at: int | None = None) -> Seen:
    """Outputs that differ by so much, everywhere or in one element."""
    generator = torch.Generator().manual_seed(0)
    oracle = torch.randn(2, 24, 96, generator=generator, dtype=torch.float64)
    wrong = oracle + 1e-9
    if at is None:
        wrong = wrong + change * torch.randn(2, 24, 96, generator=generator, dtype=torch.float64)
    else:
        wrong.view(-1)[at] += change
    return Seen(actual=wrong, expected=oracle + 1e-9 * torch.randn(oracle.shape, generator=generator), oracle=oracle)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_check_passes_what_is_right_and_rejects_what_is_far_off(peer: Peer) -> None:
    right = Seen(**dict.fromkeys(("actual", "expected", "oracle"), seen(0.0).oracle))
    assert peer.passes(right)
    assert not peer.passes(seen(100.0))
    assert not peer.passes(Seen(actual=right.actual[:1], expected=right.expected, oracle=right.oracle))
    assert not peer.passes(Seen(actual=right.actual / 0, expected=right.expected, oracle=right.oracle))


def test_one_wrong_element_escapes_a_similarity() -> None:
    verdicts = {peer.name: peer.passes(seen(4.0, at=77)) for peer in PEERS}
    assert verdicts["cosine >= 0.99"]
    assert verdicts["rtol 0.05, atol 5.0"]
    assert not verdicts["1e-5 / 1e-5"]
    assert not verdicts["0.05 of the maximum"]


def entry(fault: str, *rejected_by: str, tp: int = 2) -> Entry:
    return Entry(fault=fault, component="mlp", layer=0, tp=tp, seed=0, rejected_by=rejected_by)


def test_the_page_says_where_another_check_does_better() -> None:
    contest = Contest(
        version="1", model="tiny", command="tp-harness checks", checks=("other", OURS), faults=("a", "b"),
        entries=(entry("", OURS), entry("a", "other"), entry("b", OURS)),
    )  # fmt: skip
    assert len(contest.beaten) == 2
    text = page(contest)
    assert "| other | 1 of 2 | 50% | 0 of 1 | 0% |" in text
    assert f"| {OURS} | 1 of 2 | 50% | 1 of 1 | 100% |" in text
    assert f"- `a` at tp 2 is rejected by other and not by {OURS}." in text
    assert f"- {OURS} rejects the clean mlp layer 0 at tp 2, seed 0." in text
    assert "Nowhere" not in text
    better = replace(contest, command="checks '\nNowhere: '", entries=(entry(""), entry("a", "other", OURS)))
    assert better.beaten == ()
    assert f"Nowhere: no fault that another check rejects passes {OURS}, and no clean run fails it." in page(better)


@pytest.mark.parametrize(("ours", "code"), [((OURS,), 0), ((), 1)])
def test_the_exit_code_is_that_of_what_was_found(
    monkeypatch: pytest.MonkeyPatch, ours: tuple[str, ...], code: int
) -> None:
    """A command line stands in the page too, and it may say anything."""
    contest = Contest(
        version="1", model="tiny", command="tp-harness checks '\nNowhere: '", checks=("other", OURS), faults=("a",),
        entries=(entry("a", "other", *ours),),
    )  # fmt: skip
    monkeypatch.setattr(checks_comparison, "hold", lambda *_: contest)
    assert main(["checks", "--tp", "2"]) == code
