"""Statuses: which are a pass, which are open, which are worse; and the proof of a result on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import exact, new_record, proof, result

from tp_harness.config.options import Options, resolve
from tp_harness.judge.draws import worst_draw
from tp_harness.results.from_json import from_json
from tp_harness.results.remaining_work import Todo
from tp_harness.results.result import Result, Status, to_json
from tp_harness.results.run_record import read_run

PROVED, NOT_PROVED, DIFFERENT = exact(), exact(Status.NOT_PROVED), exact(Status.DIFFERENT)


def test_a_status_is_a_pass_or_open_or_failed() -> None:
    assert {status for status in Status if status.passed} == {Status.PASS, Status.PROVED}
    assert {status for status in Status if status.is_open} == {Status.NOT_PROVED, Status.UNDECIDED}
    assert all(status.passed + status.is_open + status.failed == 1 for status in Status)
    assert [Status("PROVED"), Status("NOT PROVED"), Status("DIFFERENT")] == [
        PROVED.status,
        NOT_PROVED.status,
        DIFFERENT.status,
    ]


@pytest.mark.parametrize(
    "draws",
    [
        (PROVED, NOT_PROVED),
        (NOT_PROVED, DIFFERENT),
        (exact(Status.MISMATCH), DIFFERENT),
        (exact(Status.VOID), DIFFERENT),
        (NOT_PROVED, exact(Status.VOID)),
        (PROVED, exact(of=proof(margin=1e-7))),
        (result(status=Status.UNDECIDED), result(status=Status.MISMATCH)),
    ],
)
def test_the_worst_draw_stands_for_all(draws: tuple[Result, Result]) -> None:
    better, worse = draws
    assert worst_draw((better, worse)) == worst_draw((worse, better)) == worse != better


def test_what_differs_is_explained_and_what_is_not_proved_is_not(tmp_path: Path) -> None:
    todo = Todo(options=resolve(Options(degrees=(8,))), record=new_record(tmp_path, PROVED))
    assert [todo.unexplained(each) for each in (PROVED, NOT_PROVED, DIFFERENT)] == [False, False, True]


@pytest.mark.parametrize(("held", "lacks"), [(PROVED, True), (NOT_PROVED, False), (DIFFERENT, False)])
def test_a_degree_at_which_something_was_proved_needs_a_control(tmp_path: Path, held: Result, lacks: bool) -> None:
    todo = Todo(options=resolve(Options(degrees=(8,))), record=new_record(tmp_path, held))
    assert todo.lacks_control(8) is lacks


def test_a_different_result_is_rejected_by_it() -> None:
    assert DIFFERENT.rejections == {"residues": "residues"}
    assert PROVED.rejections == NOT_PROVED.rejections == {}


def test_a_proof_survives_the_disk_and_older_files_have_none(tmp_path: Path) -> None:
    stored = exact(of=proof(undecided=("router: a tie of experts 3 and 5 at token 7",)))
    assert read_run(new_record(tmp_path, stored).folder).results == [stored]
    older = to_json(result())
    del older["proof"]
    assert from_json(Result, older).proof is None


def test_the_branches_of_all_draws_are_told() -> None:
    draws = tuple(exact(of=proof(coverage=(said, "relu: 3% below"))) for said in ("5 of 8 chosen", "6 of 8 chosen"))
    worst = worst_draw(draws)
    assert worst.proof is not None
    assert worst.proof.coverage == ("5 of 8 chosen", "relu: 3% below", "6 of 8 chosen")
