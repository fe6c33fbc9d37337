"""Ranks that are processes bring and take what threads do at a meeting: over gloo, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch.distributed as dist
from tp_harness.launch import RankLauncher

from tp_harness.results.result import Check
from tp_harness.xla.processes import ProcessMeeting


def meet(argument: str, rank: int, size: int) -> None:
    """Bring values of different lengths, twice, and write down what came."""
    meeting = ProcessMeeting(dist.new_group(backend="gloo"))
    with meeting.turn:
        texts = meeting.exchange(rank, "x" * (3 + 1000 * rank))
    values = meeting.exchange(rank, (rank, Counter({"aten::nonzero": rank}), Check(name="n", passed=True, detail="é")))
    Path(argument, f"{rank}.json").write_text(json.dumps([[len(text) for text in texts], values]))


def test_every_rank_gets_what_every_rank_brought(tmp_path: Path) -> None:
    with RankLauncher.fork(meet) as launcher:
        outcome = launcher.start(
            str(tmp_path), size=3, work_dir=tmp_path / "work", log_dir=tmp_path / "logs", timeout=60
        ).wait()
    assert outcome.ok, outcome
    got = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    check = {"name": "n", "passed": True, "detail": "é"}
    assert got == [[[3, 1003, 2003], [[rank, {"aten::nonzero": rank}, check] for rank in range(3)]]] * 3
