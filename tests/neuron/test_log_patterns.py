"""Lines of the Neuron runtime and compiler as they were published, and look-alikes that must not be taken for them."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from tp_harness.neuron.log_patterns import SYMPTOMS, advice, read_log, recognise

# (name, line, part of the sentence)
_ENTRY = re.compile(r"^## (?P<name>.+?) \| (?P<sentence>.+) \| .+\n(?P<line>.+)$", re.MULTILINE)
RECORDED = [
    (match["name"], match["line"], match["sentence"])
    for match in _ENTRY.finditer((Path(__file__).parents[1] / "recorded" / "neuron_logs.txt").read_text())
]

LOOK_ALIKES = [
    "INFO NRT:nrt_allocate_neuron_cores NeuronCore(s) available - Requested:nc1-nc1 Available:32",
    "(NON-FATAL, Ignoring) inference timeout (180000 ms) on Neuron Device 0 NC 0, waiting for cc status notifications.",
    "INFO: allocated 4.000GB (usage: tensors) on ND 0:NC 4",
    "Failed to allocate a port; trying the next one",
    "status=10030 message=whatever",
    "layer 1003: loss 1.2",
    "Supported topology. number of Neuron Cores is 8",
    "Compiler status PASS; 70 subgraphs; compilation finished with 70 warnings",
    "--retry_failed_compilation was given; no cached neff at /var/tmp",
    "opened libnccom.so version 2.33",
    "the open files limit is 65536, not too many",
    "waiting for RX of rank 3 (waited 1 sec)",
    "Neuron Driver version 2.29.0.0 determined",
    "/opt/lib/libc.so: version `GLIBC_2.35' found",
    "World size of neff 8 equals world size of global communicator 8",
    "KeyError: 'weight'",
    "rank 0 of 8 does attention",
]


@pytest.mark.parametrize(
    ("name", "line", "sentence"), RECORDED, ids=[f"{i}-{row[0]}" for i, row in enumerate(RECORDED)]
)
def test_a_recorded_line_is_recognised_as_that_and_nothing_else(name: str, line: str, sentence: str) -> None:
    [found] = recognise(f"rank 3 of 8 does attention\n{line}\nTraceback (most recent call last):\n")
    assert found.symptom.name == name
    assert sentence in found.sentence


@pytest.mark.parametrize("line", LOOK_ALIKES)
def test_a_look_alike_is_not(line: str) -> None:
    assert recognise(line) == ()


def test_an_ordinary_log_has_none() -> None:
    text = (Path(__file__).parents[1] / "recorded" / "clean_log.txt").read_text()
    assert len(text.splitlines()) > 20
    assert recognise(text) == ()
    assert advice({rank: text for rank in range(8)}, hung=True) == ""
    held = next(line for name, line, _ in RECORDED if name == "core in use")
    assert [found.symptom.name for found in recognise(f"{text}{held}\n{text}")] == ["core in use"]


def test_that_something_failed_is_said_only_where_nothing_says_what() -> None:
    general = "ERROR NRT:nrt_init Failed to initialize devices, error:1"
    assert [found.symptom.name for found in recognise(general)] == ["runtime did not start"]
    assert [found.symptom.name for found in recognise(f"Could not open the nd0\n{general}")] == ["no such device"]
    assert "the device computed a NaN" in advice({0: "Failed to execute the model status=1003 message=N"}, hung=False)


def test_every_symptom_has_a_recorded_line_and_a_whole_sentence() -> None:
    assert {row[0] for row in RECORDED} == {symptom.name for symptom in SYMPTOMS}
    for symptom in SYMPTOMS:
        fields = {field for _, field, _, _ in string.Formatter().parse(symptom.sentence) if field}
        assert fields <= set(re.compile(symptom.pattern).groupindex), symptom.name


def test_what_a_run_survives_explains_a_timeout_and_no_crash() -> None:
    waiting = "CCOM WARN Timeout waiting for RX (waited 120 sec) - retrying"
    assert advice({0: waiting}, hung=False) == ""
    assert advice({0: waiting}, hung=True).startswith(
        "rank 0's log: some ranks waited for one that was still compiling"
    )


def test_the_first_failing_rank_speaks_first_and_each_trouble_once() -> None:
    held = next(line for name, line, _ in RECORDED if name == "core in use")
    logs = {5: held, 0: "nothing", 1: f"{held}\nnrt_execute status=1003\nToo many open files"}
    text = advice(logs, hung=False)
    assert text.startswith("rank 5's log: NeuronCore nc1-nc1 is held by another process")
    assert text.count("held by another") == 1
    assert "rank 1's log: the device computed a NaN" in text
    assert "too many" not in text, "two sentences at most"


def test_a_log_without_trouble_gives_no_advice() -> None:
    assert advice({0: "\n".join(LOOK_ALIKES)}, hung=True) == ""
    assert advice({}, hung=True) == ""


def test_a_long_log_is_read_at_both_ends(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_text("Could not open the nd7\n" + "x\n" * (1 << 20) + "Too many open files\n")
    assert [found.symptom.name for found in recognise(read_log(log))] == ["no such device", "too many open files"]
    log.write_text("Could not open the nd7\n")
    assert read_log(log) == "Could not open the nd7\n"
    assert read_log(tmp_path / "none.log") == ""
