"""What --resume takes up: the same run with the same options and files, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import exact, proof

from tp_harness.commands import verify
from tp_harness.config.dtypes import FLOATS
from tp_harness.config.options import Options, as_record, resolve
from tp_harness.errors import UsageError
from tp_harness.results.remaining_work import Todo
from tp_harness.results.result import Control, Result, Status
from tp_harness.results.resume import asked_of, inputs_of, take_up
from tp_harness.results.run_record import RunRecord, open_record
from tp_harness.system.scratch_dir import lock_folder


def result(component: str, tp: int, dtype: str = "float32", status: Status = Status.PASS, layer: int = 0) -> Result:
    return Result(
        component=component,
        tp=tp,
        backend="gloo",
        dtype=dtype,
        layer=layer,
        draws=1,
        seed=5,
        status=status,
        reason="",
    )


def control(tp: int) -> Control:
    return Control(tp=tp, fault="f", component="mlp", layer=0, dtype="float32", seed=5, rejected=True, reason="")


OPTIONS = Options(components=("attention", "mlp"), degrees=(2, 8), dtypes=("float32",), seed=5, draws=1)


def begun(folder: Path, options: Options = OPTIONS, *results: Result) -> RunRecord:
    resolved = resolve(options)
    record = open_record(
        folder,
        command="tp-harness verify",
        options=as_record(resolved),
        backend="gloo",
        blind_spots="",
        inputs=inputs_of(resolved),
    )
    for each in results:
        record.add(each)
    record.release()
    return record


def refused(folder: Path, **given: object) -> str:
    with pytest.raises(UsageError) as caught:
        take_up(folder, given)
    lock = lock_folder(folder)
    assert lock is not None, "a refusal keeps no lock"
    os.close(lock)
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        Options(),
        replace(OPTIONS, layers=(1,)),
        replace(OPTIONS, components=("rope",), layers=(1,)),
        replace(OPTIONS, model="gpt-oss-20b", seq=200, batch=3, init="constant", kernels="nki", timeout=7.5),
        Options(case="somewhere.py:CASE", degrees=(4,)),
        Options(checkpoint=Path("weights"), components=("mlp",)),
    ],
    ids=lambda options: f"{options.model}-{options.case}-{options.layers}",
)
def test_what_was_asked_is_found_again(tmp_path: Path, options: Options) -> None:
    record, asked = take_up(begun(tmp_path, options).folder, {})
    assert resolve(asked) == resolve(options)
    assert asked.backend == "gloo"
    record.release()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": 0}, "--seed is 0 here and 5 in the run in "),
        ({"components": ("mlp",)}, "--component is mlp here and attention,mlp in the run in "),
        ({"degrees": (2,)}, "--tp is 2 here and 2,8 in the run in "),
        ({"dtypes": ("bfloat16",)}, "--dtype is bfloat16 here and float32 in the run in "),
        ({"layers": (1,)}, "--layer is 1 here and the default in the run in "),
        ({"backend": "local"}, "--backend is local here and gloo in the run in "),
        ({"model": "gpt-oss-20b"}, "--model is gpt-oss-20b here and tiny in the run in "),
        ({"checkpoint": Path("w")}, "--checkpoint is w here and None in the run in "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_option_is_named_with_both_values(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    folder = begun(tmp_path).folder
    text = refused(folder, **given)
    assert text == f"{words}{folder}; leave it out to resume, or leave --resume out."


def test_the_same_options_may_be_repeated_and_the_timeout_changed(tmp_path: Path) -> None:
    folder = begun(tmp_path).folder
    given = {"seed": 5, "components": ("attention", "mlp"), "backend": "auto", "batch": 2, "timeout": 9.0}
    record, asked = take_up(folder, given)
    assert asked.timeout == 9
    assert refused_while_locked(folder).startswith(f"the run in {folder} is still going on; ")
    record.release()


def refused_while_locked(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        take_up(folder, {})
    return str(caught.value)


def test_a_run_that_goes_on_is_locked(tmp_path: Path) -> None:
    record = open_record(tmp_path, command="", options={}, backend="gloo", blind_spots="")
    assert "still going on" in refused_while_locked(record.folder)
    record.release()


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", Path(__file__)):
        with pytest.raises(UsageError, match=r"^cannot resume .*; the folder of a run is needed\.$"):
            take_up(folder, {})
    assert refused(tmp_path).startswith(f"cannot read {tmp_path}/run.json")


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "run.json").read_text())
    edit(values)
    (folder / "run.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda v: v["environment"]["packages"].update(torch="1.0"), "and was 1.0 when the run in "),
        (lambda v: v["environment"].update(tp_harness="0.0"), "tp_harness is "),
        (lambda v: v["options"].pop("seed"), "does not hold the options of a run: it lacks seed."),
        (lambda v: v["options"].update(targets=[["mlp", 9]]), "--layer is 9; tiny has layers 0 to 1."),
        (lambda v: v["options"].update(targets=[["mlp"]]), "targets[0] has 1 items, where 2 are needed."),
        (
            lambda v: v["options"]["model"].update(hidden_size=97),
            "says that the model's hidden_size is 97, which would be 96 now; start a new run.",
        ),
        (lambda v: v["options"].update(degrees=[512]), "--tp holds 512"),
    ],
    ids=["torch", "version", "lacks", "layer", "short", "model", "degree"],
)
def test_a_record_that_cannot_go_on_here_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    folder = begun(tmp_path).folder
    change(folder, edit)
    assert words in refused(folder)


def test_another_case_file_or_checkpoint_is_noticed(tmp_path: Path) -> None:
    case, weights = tmp_path / "case.py", tmp_path / "weights"
    case.write_text("CASE = 1")
    weights.mkdir()
    (weights / "a.safetensors").write_bytes(b"x")
    of_case = begun(tmp_path / "1", Options(case=f"{case}:CASE")).folder
    of_weights = begun(tmp_path / "2", Options(checkpoint=weights, components=("mlp",))).folder
    case.write_text("CASE = 2")
    (weights / "a.safetensors").write_bytes(b"xy")
    assert refused(of_case).startswith(f"{case} is ")
    assert refused(of_weights).startswith(f"{weights / 'a.safetensors'} is 2 bytes of ")


def test_what_is_left_to_do(tmp_path: Path) -> None:
    options = replace(OPTIONS, dtypes=FLOATS)
    done = [
        result("attention", tp, dtype, layer=la) for tp in (2, 8) for la in (0, 1) for dtype in resolve(options).dtypes
    ]
    record = begun(tmp_path, options, *done, result("mlp", 2))
    todo = Todo(options=resolve(options), record=record)
    assert todo.targets == (("attention", 0), ("attention", 1), ("mlp", 0)), "the degrees lack their control"
    todo.record.controls += [control(2), control(8)]
    assert todo.targets == (("mlp", 0),)
    assert (todo.dtypes(("mlp", 0), 2), todo.dtypes(("mlp", 0), 8)) == (("bfloat16",), ("float32", "bfloat16"))
    record.replace(0, replace(done[0], status=Status.MISMATCH))
    assert todo.targets == (("attention", 0), ("mlp", 0)), "a mismatch without its explanation"


def test_what_is_not_proved_is_run_again_until_it_is_said_where_residues_are_not_equal_first(tmp_path: Path) -> None:
    options = replace(OPTIONS, dtypes=("exact",))
    todo = Todo(options=resolve(options), record=begun(tmp_path, options))
    unequal = proof(undecided=("a rounding",), unequal=("output.0",))
    told = replace(unequal, first="the first tensor whose residues are not equal is norm on rank 0")
    for of, again in ((unequal, True), (told, False), (proof(undecided=("a tie",)), False)):
        row = replace(exact(Status.NOT_PROVED, of=of, tp=2), component="attention", layer=0)
        assert todo.unexplained(row) is again
    assert not todo.unexplained(replace(exact(tp=2, of=unequal), component="attention", layer=0)), "it is proved"


def test_asked_of_keeps_every_option() -> None:
    """A new option that a resumed run would forget shows here."""
    options = replace(OPTIONS, timeout=1.0, repeats=2, out=Path("x"))
    record = RunRecord(
        folder=Path(),
        command="",
        options=json.loads(json.dumps(as_record(resolve(options)))),
        backend="auto",
        blind_spots="",
        environment={},
    )
    assert replace(asked_of(record), batch=None, seq=None, model=None) == options


def test_out_cannot_be_joined_with_resume() -> None:
    from tp_harness import cli

    arguments = cli._parser().parse_args(["verify", "--resume", "r", "--out", "o"])
    with pytest.raises(UsageError, match="--out is o, but a resumed run stays in its folder, r"):
        verify.asked(arguments)
