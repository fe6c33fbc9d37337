"""Every collective between gloo processes gives exactly the numbers that it should, or says that it is not followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from exact_ranks import CALLS, SIZE, WAYS_OUT, be_rank, expected
from exact_runs import FIELD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three processes left, which made every call."""
    path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(be_rank, (str(path),), SIZE)
    return path


@pytest.mark.parametrize("constant", [None, 1], ids=["variables", "rank-1-constant"])
@pytest.mark.parametrize("name", CALLS)
def test_a_collective_is_exact(folder: Path, name: str, constant: int | None) -> None:
    for rank in range(SIZE):
        found = torch.load(folder / f"{name}-{constant}-{rank}.pt")
        if "unsupported" in found:
            pytest.skip(f"torch {torch.__version__}: {found['unsupported']}")
        right = expected(name, rank, constant)
        assert found["escapes"] == []
        assert found["numbers"].shape == right.shape
        assert FIELD.same(found["numbers"], right).all()
        torch.testing.assert_close(found["numbers"][0], right[0], rtol=1e-14, atol=1e-14)
        other = expected(name, (rank + 1) % SIZE, None if constant else 1)
        assert not FIELD.same(found["numbers"], other).all() if other.shape == right.shape else True


@pytest.mark.parametrize("name", WAYS_OUT)
def test_what_is_not_followed_is_said(folder: Path, name: str) -> None:
    for rank in range(SIZE):
        assert torch.load(folder / f"{name}-None-{rank}.pt")["escapes"]
