"""Reading run.json back: nothing is lost, and what is no run is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import gate, new_record, result

from tp_harness.errors import UsageError
from tp_harness.results.from_json import from_json
from tp_harness.results.mutation_score import Trial
from tp_harness.results.result import Divergence, Gate, Mistake, RankRecord, Result, Status, Worst, to_json
from tp_harness.results.run_record import read_run

WORDS = st.text().filter(lambda word: word not in ("nan", "inf", "-inf"))
UNTYPED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
MISTAKES = st.builds(Mistake, alike=st.tuples(st.builds(Mistake)))
RESULTS = st.builds(Result, first_divergence=st.none() | st.builds(Divergence), further=st.tuples(MISTAKES))


@given(UNTYPED)
@settings(max_examples=60, deadline=None)
def test_untyped_values_survive_json(value: object) -> None:
    text = json.dumps(to_json(value), allow_nan=False)
    assert repr(from_json(cast("type[object]", Any), json.loads(text))) == repr(value)


@given(RESULTS)
@settings(max_examples=60, deadline=None)
def test_a_result_survives_json(each: Result) -> None:
    text = json.dumps(to_json(each), allow_nan=False)
    assert repr(from_json(Result, json.loads(text))) == repr(each)  # repr: NaN equals itself, -0.0 is not 0.0


def test_a_run_survives_the_disk(tmp_path: Path) -> None:
    written = new_record(tmp_path, result(gates=(gate(float("nan")),)), result(tp=2, status=Status.CRASH))
    written.notes.append("a note")
    written.finished = True
    written.save()
    for path in (written.folder, written.path):
        found = read_run(path)
        assert repr(found.results) == repr(written.results)
        assert (found.run_id, found.started, found.seconds) == (
            written.folder.name,
            int(written.started),
            written.seconds,
        )
        assert (found.command, found.backend, found.notes) == (written.command, written.backend, ["a note"])
        assert (found.finished, found.exit_code, found.environment) == (True, 3, written.environment)
        assert found.options["degrees"] == [1, 8]


def test_a_moved_run_keeps_its_name_and_what_this_version_does_not_know(tmp_path: Path) -> None:
    written = new_record(tmp_path, result())
    values = json.loads(written.path.read_text())
    values["results"][0]["temperature"] = 30
    written.path.write_text(json.dumps(values))
    moved = written.folder.rename(tmp_path / "downloaded")
    found = read_run(moved)
    assert (found.folder, found.run_id) == (moved, written.run_id)
    found.save()
    again = json.loads(found.path.read_text())
    assert again["run_id"] == written.run_id
    assert again["results"][0] == values["results"][0]


def test_fields_of_later_versions_default_when_an_older_file_lacks_them() -> None:
    values = to_json(result())
    for name in ("first_divergence", "diagnosis", "further", "put_right", "ranks", "gates", "traceback"):
        del values[name]
    assert from_json(Result, values) == result()


@pytest.mark.parametrize("kind", ["rel_L2", "worst token", "worst block", "R", "margin of the choice"])
def test_a_gate_of_an_older_file_has_its_kind_and_tensor(kind: str) -> None:
    of_no_tensor = kind.startswith("margin")
    written = Gate(kind=kind, tensor="" if of_no_tensor else "sum of parts", value=1.0, limit=2.0, reason="why")
    values = to_json(written)
    assert values["metric"] == (kind if of_no_tensor else f"{kind} of sum of parts")
    older = {name: value for name, value in values.items() if name not in ("kind", "tensor")}
    assert from_json(Gate, older) == from_json(Gate, values) == written


def test_a_trial_of_an_older_file_has_the_kinds_of_what_rejected_it() -> None:
    checks = ("schedule", "worst token of output.0", "rel_L2 of output.0", "rel_L2 of output.1")
    trial = Trial(fault="f", tp=2, dtype="float32", outcome="caught", checks=checks, kinds=("schedule", "rel_L2"))
    older = {name: value for name, value in to_json(trial).items() if name != "kinds"}
    found = from_json(Trial, older)
    assert found.kinds == ("schedule", "worst token", "rel_L2")
    assert from_json(Trial, older | {"checks": list(checks[1:])}).only_by == "rel_L2"
    assert found.only_by == ""
    assert from_json(Trial, to_json(trial)) == trial


def changed(values: Any, *path: str | int, to: Any) -> Any:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = to
    return None


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("tp",), "eight", "tp is 'eight', where a whole number is needed"),
        (("tp",), True, "tp is True, where a whole number is needed"),
        (("status",), "GOOD", "status is 'GOOD', where one of PASS, PROVED, NOT PROVED, UNDECIDED, MISMATCH,"),
        (("gates",), {}, "gates is {}, where an array is needed"),
        (("gates", 0, "value"), "1e-6", "gates[0].value is '1e-6', where a number is needed"),
        (("gates", 0), {"metric": "R", "value": 1.0}, "gates[0] lacks limit, reason"),
        (("gates", 0), {"metric": 3, "value": 1.0}, "gates[0] lacks kind, limit, reason"),
        (("worst",), 3, "worst is 3, where an object is needed"),
        (("reason",), None, "reason is None, where a string is needed"),
        (("ranks",), [{"rank": 0}], "ranks[0] lacks core, wall_s,"),
    ],
    ids=["word", "bool", "status", "array", "number", "lacking", "no_metric", "object", "null", "nested"],
)
def test_a_wrong_value_is_named(path: tuple[str | int, ...], to: Any, message: str) -> None:
    values = to_json(result(gates=(gate(1e-6),), worst=Worst(tensor="y", index=(0,), rank=0, actual=1.0, expected=1.0)))
    changed(values, *path, to=to)
    with pytest.raises(ValueError) as caught:
        from_json(Result, values)
    assert str(caught.value).startswith(message)


def test_a_missing_field_at_the_top_names_the_type() -> None:
    with pytest.raises(ValueError, match=r"^it lacks kind, value, limit, reason$"):
        from_json(Gate, {})
    with pytest.raises(ValueError, match=r"^it lacks "):
        from_json(RankRecord, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: "),
        ("[]", "has schema None, but schema 1 is what tp-harness "),
        ('{"schema": 2}', "has schema 2, but schema 1 is what tp-harness "),
        ('{"schema": 1}', "does not hold a run: it lacks run_id, "),
    ],
    ids=["broken", "no_object", "schema", "empty"],
)
def test_what_is_no_run_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_run(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'run.json'} {message}")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_run(tmp_path)
    assert str(caught.value) == (
        f"cannot read {tmp_path / 'run.json'}: No such file or directory; give the folder of a run, which holds one."
    )


def test_a_bad_time_is_refused(tmp_path: Path) -> None:
    written = new_record(tmp_path)
    written.path.write_text(written.path.read_text().replace('"started": "20', '"started": "yesterday 20'))
    with pytest.raises(UsageError, match="does not hold a run: time data 'yesterday"):
        read_run(written.folder)
