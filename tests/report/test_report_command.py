"""`tp-harness report`, and the pages that `verify` leaves: whole or not at all, and each row can be run again."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from records import fill_disk_half_way
from report_pages import RUNS, run_of

from tp_harness import cli
from tp_harness.commands import verify
from tp_harness.errors import UsageError
from tp_harness.report import PAGES, view, write_pages
from tp_harness.report.kills import read_trials
from tp_harness.results.run_record import RunRecord, read_run


def test_the_command_asks_for_one_row() -> None:
    record = run_of("clean")
    row = next(each for each in record.results if (each.component, each.tp, each.dtype) == ("mlp", 2, "bfloat16"))
    words = shlex.split(view.command(record, row))
    assert words[:2] == ["tp-harness", "verify"]
    asked = verify.options_of(cli._parser().parse_args(words[1:]))
    assert (asked.components, asked.layers, asked.degrees, asked.dtypes) == (("mlp",), (0,), (2,), ("bfloat16",))
    assert (asked.model, asked.backend, asked.seq, asked.batch) == ("tiny", "gloo", 20, 2)
    assert (asked.seed, asked.draws, asked.repeats) == (0, 1, 3)
    part = replace(row, component="transformer", extent="2 of 24 layers")
    words = shlex.split(view.command(replace(record, options=record.options | {"depth": 2}), part))
    asked = verify.options_of(cli._parser().parse_args(words[1:]))
    assert (asked.components, asked.depth) == (("transformer",), 2)
    own = run_of("mismatch")
    words = shlex.split(view.command(own, own.results[0]))
    asked = verify.options_of(cli._parser().parse_args(words[1:]))
    assert (asked.case, asked.components, asked.batch, asked.seq) == (("cases.py:WRONG",), (), None, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "Expecting property name"), ("[]", "indices"), ('{"trials": [{}]}', "it lacks fault, tp")],
)
def test_another_faults_json_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "faults.json").write_text(text)
    with pytest.raises(UsageError, match=r"faults.json is not what `tp-harness faults --json` prints \(.*" + why):
        read_trials(tmp_path)


def test_the_command_renders_again_without_torch(tmp_path: Path) -> None:
    folder = tmp_path / "downloaded"
    shutil.copytree(RUNS / "mismatch", folder)
    for page in PAGES:
        (folder / page).unlink(missing_ok=True)
    without = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None"
    without += "; from tp_harness.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", without, "report", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [str(folder / page) for page in PAGES]
    for page, render in PAGES.items():
        assert (folder / page).read_text(encoding="utf-8") == render(read_run(folder), ())


def test_no_run_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"tp-harness: cannot read {tmp_path / 'run.json'}")


def test_a_full_disk_leaves_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(run_of("void"), folder=tmp_path)
    monkeypatch.setattr(Path, "write_text", fill_disk_half_way)
    with pytest.raises(UsageError, match=r"report.html: No space left on device; run.json is whole\.$"):
        write_pages(record)
    assert list(tmp_path.iterdir()) == []


def test_verify_leaves_pages_and_a_row_repeats_exactly(tmp_path: Path) -> None:
    def run(words: list[str]) -> tuple[RunRecord, str]:
        command = [sys.executable, "-m", "tp_harness", *words, "--out", str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        folder = Path(ended.stdout.splitlines()[-1]).parent
        return read_run(folder), ended.stdout

    whole, output = run(shlex.split("verify --component mlp --component rmsnorm --tp 1,2 --seed 3"))
    assert output.splitlines()[-1] == str(whole.folder / "report.html")
    assert {path.name for path in whole.folder.iterdir()} >= {*PAGES, "run.json"}
    assert (whole.folder / "junit.xml").read_text() == PAGES["junit.xml"](whole, ())
    row = next(each for each in whole.results if (each.component, each.tp, each.dtype) == ("mlp", 2, "float32"))
    [again] = run(shlex.split(view.command(whole, row))[1:])[0].results
    assert (again.title, again.gates, again.worst) == (row.title, row.gates, row.worst)


def test_a_verdict_stands_without_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from tp_harness.verification import summary

    def fail(_record: RunRecord) -> list[Path]:
        raise UsageError("cannot write report.html: No space left on device; run.json is whole.")

    monkeypatch.setattr(summary, "write_pages", fail)
    summary._leave_pages(run_of("clean"), Console())
    assert "run.json is whole" in capsys.readouterr().err
