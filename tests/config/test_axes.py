"""--ep and --cp: what they are refused with, how a Case's mesh takes them, and that a resumed run keeps them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from own_moe import MOE
from own_runs import run_case
from torch import nn

from tp_harness.case.case import Case
from tp_harness.config.options import Options, as_record, resolve
from tp_harness.errors import UsageError
from tp_harness.results.from_json import from_json
from tp_harness.results.result import Result, Status, to_json
from tp_harness.results.resume import asked_of, inputs_of, take_up
from tp_harness.results.run_record import open_record, read_run

OF_A_CASE = {"case": "cases.py:CASE", "degrees": (8, 32)}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no case": (
        {"ep": 2, "degrees": (8,)},
        "--ep is 2, which is for a Case whose mesh takes ep; add --case or leave it out.",
    ),
    "none": (OF_A_CASE | {"cp": 0}, "--cp is 0; a number between 1 and 1048575 is needed."),
    "does not divide": (
        OF_A_CASE | {"ep": 16, "degrees": (1, 8, 32)},
        "--ep is 16, and --tp holds 1, 8; each degree must divide by it, as --tp 16 does.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_degree_can_have_is_refused(name: str) -> None:
    values, text = REFUSED[name]
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        resolve(Options(**values))
    assert resolve(Options(**OF_A_CASE, ep=8)).ep == 8


def case(mesh: Any) -> Case:
    inputs = {"inputs": lambda _: (torch.ones(4),)}
    return Case(name="mine", reference=nn.Identity, sharded=nn.Identity, mesh=mesh, **inputs)


def test_the_mesh_s_function_is_given_what_was_asked_for() -> None:
    both = case(lambda degree, ep=1, cp=1: {"ep": ep, "cp": cp, "tp": degree // (ep * cp)})
    assert both.at(8, {"ep": 2, "cp": 4}).axes(8) == {"ep": 2, "cp": 4, "tp": 1}
    assert both.at(8, {}).axes(8) == both.at(8).axes(8) == {"ep": 1, "cp": 1, "tp": 8}
    assert both.at(1, {"ep": 1}).axes(1) == {"ep": 1, "cp": 1, "tp": 1}
    needed = case(lambda degree, ep: {"ep": ep, "tp": degree // ep})
    assert needed.at(32, {"ep": 8}).declared_axes(32) == {"ep": 8, "tp": 4}
    assert case(None).at(8).declared_axes(8) == {}


@pytest.mark.parametrize("mesh", [{"ep": 2, "tp": 4}, lambda degree: {"tp": degree}, None])
def test_a_mesh_that_does_not_take_it_is_refused(mesh: Any) -> None:
    text = "--ep is 2, and the mesh of mine does not take it: let it be a function with an argument ep, "
    for tp in (1, 8):
        with pytest.raises(UsageError, match=re.escape(text)):
            case(mesh).at(tp, {"ep": 2})


def test_a_mesh_that_needs_one_says_which() -> None:
    needed = case(lambda degree, cp: {"cp": cp, "tp": degree // cp})
    with pytest.raises(UsageError, match=r"^the mesh of mine takes cp, which --cp gives: add it\.$"):
        needed.at(8)


ASKED = MOE + 'ASKED = dataclasses.replace(RIGHT, mesh=lambda degree, ep=1: {"ep": ep, "tp": degree // ep})\n'


def test_the_ranks_stand_on_the_axes_that_were_asked_for(tmp_path: Path) -> None:
    for ep, axes in ((8, "ep 8 x tp 1"), (2, "ep 2 x tp 4"), (0, "ep 1 x tp 8")):
        (tmp_path / str(ep)).mkdir()
        (result,) = run_case(tmp_path / str(ep), ASKED, "ASKED", (8,), dtypes=("float32",), ep=ep).results
        assert (result.status, result.axes) == (Status.PASS, axes)
        members = [len(call.exchange.members) if call.exchange else 0 for call in result.ranks[0].collectives]
        assert members == [size for size in (8 // max(ep, 1), ep) if 1 < size < 8] or members == [0]
        assert from_json(Result, to_json(result)) == result
        assert result.title == f"moe layer 0 tp 8 ({axes}) float32"


def test_a_result_of_an_older_file_has_no_mesh() -> None:
    old = to_json(Result(component="c", tp=8, backend="gloo", dtype="float32", layer=0, draws=1, seed=0,
                         status=Status.PASS, reason=""))  # fmt: skip
    del old["mesh"]
    assert from_json(Result, old).mesh == {}


def test_a_resumed_run_keeps_its_axes(tmp_path: Path) -> None:
    (tmp_path / "cases.py").write_text(ASKED)
    asked = Options(case=f"{tmp_path / 'cases.py'}:ASKED", degrees=(8,), ep=4)
    resolved = resolve(asked)
    fields = {"options": as_record(resolved), "backend": "gloo", "blind_spots": "", "inputs": inputs_of(resolved)}
    record = open_record(tmp_path / "out", command="", **fields)
    record.save()
    record.release()
    again = asked_of(read_run(record.folder))
    assert (again.ep, again.cp) == (4, None)
    with pytest.raises(UsageError, match=r"^--ep is 2 here and 4 in the run in "):
        take_up(record.folder, {"ep": 2})
    taken, options = take_up(record.folder, {"ep": 4})
    taken.release()
    assert options.ep == 4
