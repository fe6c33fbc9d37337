"""A module that raises an error in exact arithmetic alone is not proved, and its other verdicts stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Harness
from own_mlp import MLP

CASES = (
    MLP
    + """
from tp_harness.parallel.group import current_group

class Anxious(MLP):
    '''Looks at its numbers past torch's dispatcher, where exact arithmetic leaves nan.'''

    def look(self, x):
        if x.detach().numpy().max() != x.detach().numpy().max():
            raise ArithmeticError("a number is nan")

    def reduce(self, x):
        self.look(x)
        return x

class Sharded(MLP):
    def __init__(self):
        super().__init__(current_group().size)

    def reduce(self, x):
        return current_group().all_reduce(x)

class LastRank(Sharded, Anxious):
    '''Only the last rank looks, while the others wait for its summand.'''

    def reduce(self, x):
        if current_group().rank == current_group().size - 1:
            self.look(x)
        return super().reduce(x)

class Wrong(LastRank):
    def reduce(self, x):
        return super().reduce(1.01 * x)

class Broken(Sharded):
    def reduce(self, x):
        raise ArithmeticError("no sums today")

def case(reference, sharded):
    plan = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
    draw = lambda generator: (torch.randn(3, 7, 12, generator=generator),)
    return Case(name="own", reference=reference, sharded=sharded, plan=plan, inputs=draw)

RANK, WRONG, BROKEN = (case(MLP, sharded) for sharded in (LastRank, Wrong, Broken))
REFERENCE, BOTH = case(Anxious, Sharded), case(Anxious, LastRank)
"""
)
ALONE = "an error is raised in exact arithmetic alone"
SAID = "ArithmeticError: a number is nan"
EXACT, FLOAT = ("--dtype", "exact"), ("--dtype", "float32")


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    own = Harness(tmp_path)
    own.cases.write_text(CASES)
    return own


@pytest.mark.parametrize("backend", ["gloo", "local"])
@pytest.mark.parametrize(
    ("names", "code", "floats"), [(("RANK", "REFERENCE", "BOTH"), 0, "PASS"), (("WRONG",), 1, "MISMATCH")]
)
def test_nothing_is_proved_and_the_float_verdict_stands(
    harness: Harness, names: tuple[str, ...], code: int, floats: str, backend: str
) -> None:
    assert (
        harness.code(*harness.named(names), "--backend", backend, "--tp", "2", "--draws", "1", *EXACT, *FLOAT) == code
    )
    results = harness.record()["results"]
    assert len(results) == 2 * len(names)
    for exact, single in zip(results[::2], results[1::2], strict=True):
        assert exact["component"] == single["component"]
        assert (exact["status"], single["status"]) == ("NOT PROVED", floats)
        assert ALONE in exact["reason"] and SAID in exact["reason"], exact["reason"]
        assert bool(single["first_divergence"]) == (floats == "MISMATCH"), "the ranks run again in float32 alone"


def test_what_fails_in_other_dtypes_too_is_a_crash(harness: Harness) -> None:
    assert harness.code("--case", f"{harness.cases}:BROKEN", "--tp", "2", "--draws", "1", *EXACT, *FLOAT) == 3
    results = harness.record()["results"]
    assert [result["status"] for result in results] == ["CRASH", "CRASH"]
    assert all("ArithmeticError: no sums today" in result["reason"] for result in results)
