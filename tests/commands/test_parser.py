"""The command line: its version, its help, and what each mistake in it is told."""

from __future__ import annotations

import re
import shlex

import pytest

from tp_harness import __version__, cli
from tp_harness.commands import COMMANDS, tp_test, verify

ALL = "verify, list, model, doctor, compare, faults, checks, graph-faults, report"
SAID = {
    "": f"a command is needed: {ALL} (see `tp-harness --help`).",
    "verfy": f"unknown command 'verfy'. Did you mean 'verify'? Choose from: {ALL}.",
    "zzz --tp 1": f"unknown command 'zzz'. Choose from: {ALL}.",
    "--verison": "unknown option --verison. Did you mean --version? `tp-harness --help` lists all.",
    "verify --compnent x": "unknown option --compnent. Did you mean --component? `tp-harness verify --help` lists all.",
    "verify x --draw=2 --sed=2": "unknown option --sed. Did you mean --seed? `tp-harness verify --help` lists all.",
    "verify -tp 8": "unknown option -tp. Did you mean --tp? `tp-harness verify --help` lists all.",
    "verify --wrong": "unknown option --wrong. `tp-harness verify --help` lists all.",
    "verify attention": "unexpected argument 'attention' (see `tp-harness verify --help`).",
    "verify --d 2": "ambiguous option: --d could match --depth, --dtype, --draws (see `tp-harness verify --help`).",
    "doctor --jsn": "unknown option --jsn. Did you mean --json? `tp-harness doctor --help` lists all.",
    "report r --out o": "unknown option --out. `tp-harness report --help` lists all.",
}


@pytest.mark.parametrize("line", SAID, ids=lambda line: line or "nothing")
def test_a_mistake_is_one_sentence_with_what_was_meant(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(line)) == 2
    assert tuple(capsys.readouterr()) == ("", f"tp-harness: {SAID[line]}\n")


def test_the_script_for_torchrun_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tp_test.py", "--compnent", "mlp"])
    assert tp_test.main() == 2
    text = "tp_test: unknown option --compnent. Did you mean --component? `launch/tp_test.py --help` lists all.\n"
    assert tuple(capsys.readouterr()) == ("", text)


def test_an_option_may_be_cut_short_where_no_other_starts_so() -> None:
    short, whole = ("verify --comp mlp --no-fault --time 9", "verify --component mlp --no-fault-control --timeout 9")
    assert cli._parser().parse_args(shlex.split(short)) == cli._parser().parse_args(shlex.split(whole))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"tp-harness {__version__}\n"


@pytest.mark.parametrize("command", [command.NAME for command in COMMANDS])
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: tp-harness {command} [")


def test_the_examples_in_the_help_of_verify_are_commands() -> None:
    lines = re.findall(r"^  tp-harness (verify.*?)(?:  .*)$", verify.EXAMPLES, flags=re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        cli._parser().parse_args(shlex.split(line))
