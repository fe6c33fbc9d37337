"""The command `tp-harness compare`: exit codes, one sentence for unusable input, and two real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Harness
from compared import result

from tp_harness.cli import main
from tp_harness.regression.comparison import compare
from tp_harness.results.result import Result, Status
from tp_harness.results.run_record import open_record, read_run


def stored(folder: Path, *results: Result) -> str:
    run = open_record(folder, command="tp-harness verify", options={}, backend="gloo", blind_spots="")
    for each in results:
        run.add(each)
    run.finished = True
    run.save()
    return str(run.folder)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = stored(tmp_path, result()), stored(tmp_path, result(status=Status.MISMATCH, reason="other bits"))
    assert main(["compare", good, str(Path(good) / "run.json")]) == 0  # a run.json alone serves as a baseline
    assert main(["compare", bad, good]) == 0
    assert main(["compare", good, bad, "--markdown", str(tmp_path / "summary.md")]) == 1
    assert "MISMATCH" in capsys.readouterr().out
    assert "| other bits |" in (tmp_path / "summary.md").read_text()


UNUSABLE: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "absent": (lambda folder: ["absent"], "cannot read absent: No such file or directory; give the folder of a run"),
    "no-json": (lambda folder: [_file(folder, "x")], "is not JSON"),
    "another-schema": (lambda folder: [_file(folder, '{"schema": 0}')], "has schema 0"),
    "no-run": (lambda folder: [_file(folder, '{"schema": 1}')], "does not hold a run"),
    "no-common-row": (lambda folder: [stored(folder, result(tp=8))], "have no row (component, layer, tp, dtype) in"),
    "unwritable": (lambda folder: [stored(folder, result()), "--markdown", str(folder)], "give another file with --m"),
}


def _file(folder: Path, text: str) -> str:
    path = folder / "run.json"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_input_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = UNUSABLE[name]
    good, *bad = stored(tmp_path, result()), *make(tmp_path)
    assert main(["compare", good, *bad]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.slow
def test_two_real_runs_of_one_program_show_nothing_and_a_wrong_one_is_found(tmp_path: Path) -> None:
    """Without repeats: how two runs' times differ is the machine's affair."""
    options = ["--component", "rmsnorm", "--tp", "1,2", "--draws", "1"]
    runs = []
    for name, patch in (
        ("a", ""),
        ("b", ""),
        ("c", "from tp_harness.models.gpt_oss.modules import norm; norm.RMS_NORM_EPS = 1e-3"),
    ):
        (tmp_path / name).mkdir()
        harness = Harness(tmp_path / name)
        assert harness.code(*options, patch=patch) == (name == "c")
        runs.append(read_run(next(harness.out.glob("*"))))
    same, wrong = compare(runs[0], runs[1]), compare(runs[1], runs[2])
    assert (same.rows, same.changes, same.differences) == (4, (), ())
    assert {(c.kind, c.worse) for c in wrong.changes} == {("verdict", True)}
    assert wrong.exit_code == 1
