"""Several Cases in one run: each has rows, controls, logs and a command of its own; all are checked before any rank."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from command import Harness
from safetensors.torch import save_file

from tp_harness.config.options import Options, resolve
from tp_harness.prepare.own_cases import with_cases_named
from tp_harness.prepare.prepare import prepare
from tp_harness.report import view
from tp_harness.results.run_record import read_run
from tp_harness.verification.hosts import Host

TWO = """
A, B = case(Sharded), case(Forgetful)
OTHER = dataclasses.replace(A, name="other", layer=2)
"""


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def own_file(harness: Harness, body: str, name: str = "several.py") -> Path:
    """A file of Cases made of the modules in the harness's."""
    file = harness.home / name
    file.write_text(f"import dataclasses\nfrom cases import Forgetful, MLP, Sharded, Shard, case\n{body}")
    return file


def test_each_case_of_a_file_has_rows_a_control_and_a_command(harness: Harness) -> None:
    file = own_file(harness, TWO)
    assert harness.code("--case", str(file), "--tp", "1,2", "--draws", "1", "--dtype", "float32") == 1
    record = harness.record()
    assert [(r["component"], r["layer"], r["tp"], r["status"]) for r in record["results"]] == [
        ("own (A)", 0, 1, "PASS"),
        ("own (A)", 0, 2, "PASS"),
        ("own (B)", 0, 1, "PASS"),
        ("own (B)", 0, 2, "MISMATCH"),
        ("other", 2, 1, "PASS"),
        ("other", 2, 2, "PASS"),
    ]
    controls = [(c["component"], c["tp"]) for c in record["controls"] if c["rejected"]]
    assert controls == [(name, tp) for name in ("own (A)", "own (B)", "other") for tp in (1, 2)]
    assert record["options"]["case"] == [f"{file}:{name}" for name in ("A", "B", "OTHER")]
    assert record["options"]["targets"] == [["own (A)", 0], ["own (B)", 0], ["other", 2]]
    assert not {"model", "batch", "seq"} & record["options"].keys()
    run = read_run(next(harness.out.glob("*")))
    repeats = {r.component: shlex.split(view.command(run, r)) for r in run.results}
    assert {name: words[words.index("--case") + 1] for name, words in repeats.items()} == {
        "own (A)": f"{file}:A",
        "own (B)": f"{file}:B",
        "other": f"{file}:OTHER",
    }
    assert f"{file}:OTHER" in view.control_command(run, run.controls[-1])
    suites = ET.parse(run.folder / "junit.xml").getroot().findall("testsuite")
    assert [suite.attrib["name"] for suite in suites] == ["own (A)", "own (B)", "other"]
    assert len({r["log_dir"] for r in record["results"]}) == 6


def test_weights_of_cases_with_the_same_names_and_other_shapes_are_kept_apart(harness: Harness) -> None:
    body = "A = case(Sharded)\nclass Wide(MLP):\n    def __init__(self, n=1):\n        super().__init__(n)\n"
    body += "        self.register_buffer('offset', torch.ones(7))\n"
    body += "    def forward(self, x):\n        return super().forward(x) * self.offset[0]\n"
    body += "WIDE = dataclasses.replace(A, name='wide', reference=Wide, sharded=Wide, plan={}, replicated=True)"
    file = own_file(harness, f"import torch\n{body}")
    assert harness.code("--case", str(file), "--tp", "1", "--draws", "1", "--dtype", "float32") == 0


def test_one_bad_plan_refuses_all_before_any_rank_starts_and_every_bad_one_is_named(harness: Harness) -> None:
    file = own_file(
        harness,
        "A, BAD, WORSE = case(Sharded), case(Sharded, plan=('up.weight',)), case(Sharded, down=Shard(5))\n"
        "NAMED = dataclasses.replace(case(Sharded, down=Shard(0)), name='named')",
    )
    [(code, text)] = harness.run(["--case", str(file), "--tp", "2", "--draws", "1", "--dtype", "float32"])
    assert code == 2
    assert text.count("\n") == 1
    assert "own (BAD): " in text
    assert "own (WORSE): " in text
    assert text.count("named: ") == 1, "its text begins with its name"
    assert "own (A): " not in text
    assert not harness.out.exists() or not list(harness.out.iterdir())


def test_notes_say_which_case_they_are_about(harness: Harness) -> None:
    body = """
import torch
class Table(torch.nn.Embedding):
    def __init__(self):
        super().__init__(8, 4)
TABLE = dataclasses.replace(case(Table), name="table", reference=Table, plan={}, replicated=True,
                            inputs=lambda g: (torch.randint(0, 4, (2, 16), generator=g),))
A = case(Sharded)
"""
    file = own_file(harness, body)
    said = "4 of 8 rows of weight (4, 5, 6, 7) change no output with these inputs: a mistake there is unseen"
    given = [
        ["--case", spec, "--tp", "1", "--draws", "1", "--dtype", "float32"] for spec in (f"{file}:TABLE", str(file))
    ]
    assert harness.run(*given) == [(0, ""), (0, "")]
    assert [record["notes"] for record in harness.records()] == [[said], [f"table: {said}"]]


def test_a_crash_of_one_case_leaves_the_others_their_verdict(harness: Harness) -> None:
    """A breakpoint in a rank without a terminal is one, which names the backend that has one."""
    dies = "class Dies(Sharded):\n    def reduce(self, x):\n        raise OSError('no')\n"
    dies += "class Stops(Sharded):\n    def reduce(self, x):\n        breakpoint()\n        return super().reduce(x)\n"
    file = own_file(harness, dies + "DIES, A, STOPS = case(Dies), case(Sharded), case(Stops)")
    assert harness.code("--case", str(file), "--tp", "2", "--draws", "1", "--dtype", "float32") == 3
    assert [(name, status) for name, _, _, status in harness.statuses()] == [
        ("own (DIES)", "CRASH"),
        ("own (A)", "PASS"),
        ("own (STOPS)", "CRASH"),
    ]
    stopped = harness.record()["results"][-1]
    assert (
        "breakpoint() found no terminal, which ranks of backend gloo do not have: use --backend local"
        in stopped["reason"]
    )
    assert "in reduce" in stopped["traceback"]


def test_a_run_of_several_cases_is_resumed_with_the_same_names(harness: Harness) -> None:
    file = own_file(harness, TWO)
    asked = ["--case", str(file), "--tp", "1", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*asked) == 0
    [path] = harness.out.glob("*/run.json")
    values = json.loads(path.read_text())
    whole = values["results"]
    path.write_text(json.dumps(values | {"results": whole[:1], "controls": values["controls"][:1], "finished": False}))
    assert harness.code("--resume", str(path.parent), "--case", str(file)) == 0
    again = harness.record()
    keys = ("component", "layer", "status", "gate", "seed")
    assert [[r[key] for key in keys] for r in again["results"]] == [[r[key] for key in keys] for r in whole]
    assert [(c["component"], c["fault"]) for c in again["controls"]] == [
        (c["component"], c["fault"]) for c in values["controls"]
    ]


def test_a_checkpoint_gives_a_case_its_weights(harness: Harness) -> None:
    state = {
        "up.weight": torch.randn(64, 12),
        "up.bias": torch.randn(64),
        "down.weight": torch.randn(20, 64),
        "bias": torch.ones(20),
    }
    good, bad = harness.home / "good.safetensors", harness.home / "bad.safetensors"
    save_file({f"model.0.{name}": x for name, x in state.items()} | {"lm_head": torch.ones(2)}, good)
    save_file({f"model.0.{name}": x for name, x in state.items() if name != "bias"}, bad)
    file = own_file(harness, "A = case(Sharded, prefix='model.0.')")
    run = ["--case", f"{file}:A", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*run, "--checkpoint", str(good)) == 0
    assert harness.record()["options"]["checkpoint"] == str(good)
    [(code, text)] = harness.run([*run, "--checkpoint", str(bad)])
    assert (code, text) == (2, f"tp-harness: the checkpoint {bad} lacks the tensor model.0.bias of shape [20].\n")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--init", "tied"), "--init is tied, which ties experts"),
        (("--kernels", "nki"), "--kernels is nki, and no part of own"),
    ],
)
def test_an_option_that_changes_nothing_of_this_case_is_refused(
    harness: Harness, given: tuple[str, str], words: str
) -> None:
    [(code, text)] = harness.run(["--case", f"{harness.cases}:RIGHT", "--tp", "2", *given])
    assert code == 2
    assert words in text


def test_hosts_that_share_the_cases_of_a_run_call_them_alike(harness: Harness) -> None:
    file = own_file(harness, TWO)
    whole = with_cases_named(resolve(Options(case=str(file), degrees=(1,))))
    assert whole.targets == (("own (A)", 0), ("own (B)", 0), ("other", 2))
    host = Host(index=1, count=2, ranks=1)
    share = replace(whole, targets=host.share(whole.targets), case=host.share(whole.case))
    [preparation] = prepare(share, copies=0, process_group=True)
    assert preparation.own is not None
    assert (preparation.own.label, preparation.own.spec) == ("own (B)", f"{file}:B")
