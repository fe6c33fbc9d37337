"""What ranks of any backend leave of a run, without a verdict."""

from __future__ import annotations

from pathlib import Path

import torch
from command import PATIENCE
from tp_harness.launch import LaunchOutcome

from tp_harness.backends import choose_backend, run_to_end
from tp_harness.backends.base import Session
from tp_harness.judge.gather import Awaited, read_outputs
from tp_harness.prepare.material import Material


def run(material: Material, tp: int, backend: str, folder: Path, timeout: float = PATIENCE) -> LaunchOutcome:
    """All targets of the material at one degree; how the ranks ended."""
    with choose_backend(backend).open() as session:
        return finish(session, material, tp, folder, timeout)


def finish(session: Session, material: Material, tp: int, folder: Path, timeout: float) -> LaunchOutcome:
    job = material.job(tp, material.targets)
    return run_to_end(session, job, log_dir=folder, timeout=timeout)


def tensors(material: Material, tp: int) -> dict[tuple[str, int, str], torch.Tensor]:
    """What the ranks left, by task, rank and name."""
    job = material.job(tp, material.targets)
    assert Awaited(job, job.tasks).all_there()
    outputs = {task.key: read_outputs(job, task) for task in job.tasks}
    return {
        (key, rank, name): tensor
        for key, ranks in outputs.items()
        for rank, output in ranks.items()
        for name, tensor in output.tensors.items()
    }
