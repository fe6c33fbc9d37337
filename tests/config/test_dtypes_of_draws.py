"""Which draws a dtype takes: exact arithmetic, beside others, the first alone."""

from __future__ import annotations

import pytest

from tp_harness.config.dtypes import draws_in
from tp_harness.prepare.material import Target
from tp_harness.ranks.job import Job, Subject, Task

TASKS = tuple(Task(component="mlp", layer=0, draw=draw) for draw in range(2))


def job(*dtypes: str) -> Job:
    subject = Subject(batch_size=1, seq_len=4)
    return Job(tp=2, subject=subject, tasks=TASKS, dtypes=dtypes, weights=(), folder="")


@pytest.mark.parametrize(
    ("dtypes", "of_draws"),
    [
        (("exact", "float32"), [("exact", "float32"), ("float32",)]),
        (("exact",), [("exact",), ("exact",)]),
        (("float32", "bfloat16"), [("float32", "bfloat16")] * 2),
    ],
)
def test_exact_takes_the_first_draw_beside_other_dtypes(
    dtypes: tuple[str, ...], of_draws: list[tuple[str, ...]]
) -> None:
    assert [job(*dtypes).dtypes_of(task) for task in TASKS] == of_draws
    counts = {dtype: sum(dtype in of_draw for of_draw in of_draws) for dtype in dtypes}
    assert {dtype: draws_in(dtype, dtypes, len(TASKS)) for dtype in dtypes} == counts


def test_a_target_in_parts_has_the_draws_of_each_dtype() -> None:
    parts = Target(name="mlp", layer=0, tasks=TASKS).by_dtype(job("exact", "float32"))
    assert [[(task.dtype, task.draw) for task in part.tasks] for part in parts] == [
        [("exact", 0)],
        [("float32", 0), ("float32", 1)],
    ]
