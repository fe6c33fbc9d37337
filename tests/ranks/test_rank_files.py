"""What ranks leave: large tensors of the same bits are one file, and every rank has its own all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tp_harness.parallel.placements import same_bits
from tp_harness.ranks.rank_files import LARGE_BYTES, digest, put_aside, read_output, remove_outputs, write_output
from tp_harness.ranks.rank_report import RankReport, TensorKey

LARGE = torch.arange(LARGE_BYTES // 4, dtype=torch.float32).view(4, -1)
BIG_KEY, SMALL_KEY = TensorKey("float32", "locked", "output.0"), TensorKey("float32", "tap", "mlp.chosen")
REPORT = RankReport(rank=0, core="thread 0", config_hash="1f", wall_s=0.5, cpu_s=1 / 3, runs={})
SMALL = torch.tensor([[1.5, float("nan")]])


def leave(folder: Path, ranks: dict[int, torch.Tensor], task: str = "mlp.0.d0") -> list[Path]:
    """The files of ranks that each give a small tensor and theirs."""
    paths = []
    for rank, tensor in ranks.items():
        paths.append(folder / f"{task}.tp{len(ranks)}.rank{rank}.safetensors")
        kept = put_aside(paths[-1], {BIG_KEY: tensor, SMALL_KEY: SMALL})
        write_output(paths[-1], kept, replace(REPORT, rank=rank))
    return paths


@pytest.mark.parametrize("large", [LARGE, LARGE.to(torch.bfloat16).repeat(2, 1)], ids=["float32", "bfloat16"])
def test_ranks_that_hold_the_same_bits_share_a_file(large: torch.Tensor, tmp_path: Path) -> None:
    other = large.clone()
    other[0, 0] = 1
    paths = leave(tmp_path, {0: large, 1: large.clone(), 2: other, 3: large[:1]})
    seen: dict[str, torch.Tensor] = {}
    read = [read_output(path, seen)[0] for path in paths]
    for tensors, right in zip(read, (large, large, other, large[:1]), strict=True):
        assert same_bits(tensors[BIG_KEY], right) and same_bits(tensors[SMALL_KEY], SMALL)
    assert read[0][BIG_KEY] is read[1][BIG_KEY]
    assert len(seen) == 2 and len(list(tmp_path.iterdir())) == 6  # the last rank's part is no large tensor


def test_equal_bytes_of_another_shape_are_another_tensor(tmp_path: Path) -> None:
    paths = leave(tmp_path, {0: LARGE, 1: LARGE.view(2, -1)})
    shapes = [read_output(path, {})[0][BIG_KEY].shape for path in paths]
    assert shapes == [LARGE.shape, LARGE.view(2, -1).shape]
    assert digest(LARGE) == digest(LARGE.view(2, -1))


def test_a_task_s_files_go_together_and_no_others(tmp_path: Path) -> None:
    leave(tmp_path, {0: LARGE, 1: LARGE}, "mlp.0.d0.some-fault")
    kept = set(tmp_path.iterdir())
    remove_outputs(leave(tmp_path, {0: LARGE, 1: LARGE + 1}))
    assert set(tmp_path.iterdir()) == kept and len(kept) == 3
