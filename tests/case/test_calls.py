"""Several calls of one module: each is judged, with the state that it leaves, and the first wrong call is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoders import DECODERS
from own_runs import run_case

from tp_harness.case.calls import Call, Calls, Output, check_calls
from tp_harness.errors import UsageError
from tp_harness.results.result import Result, Status
from tp_harness.results.tensor_names import without_call

DTYPES = ("exact", "float32", "bfloat16")
MISTAKES = {  # what is said in float32, and the first wrong tensor
    "ONE_LATE": ("", "decode.0/state.keys"),
    "UNSEEN": ("decode.0/output.0", "decode.0/output.0"),
    "OVERWRITES": ("", "prefill/state.keys"),
    "FIRST_ROW": ("", "decode.0/state.keys"),
    "HALF": ("prefill/state.keys of rank 0 is torch.float16, where torch.float32 was run", ""),
    "FORGETS": ("decode.0/output.past.keys of rank 0 has shape [2, 4, 2, 4] instead of [2, 5, 2, 4]", ""),
}


def verified(folder: Path, name: str, **fields: object) -> list[Result]:
    return run_case(folder, DECODERS, name, (4,), **({"dtypes": DTYPES, "draws": 1} | fields)).results


@pytest.mark.parametrize("name", ["KEPT", "TRAVELLING", "ONCE"])
def test_calls_of_a_module_that_keeps_or_passes_on_a_state(tmp_path: Path, name: str) -> None:
    results = verified(tmp_path, name, repeats=2)
    assert [r.status for r in results] == [Status.PROVED, Status.PASS, Status.PASS], [r.reason for r in results]
    judged = {
        "ONCE": {"output.0", "state.keys"},
        "KEPT": {"decode.1/state.values", "chunk/output.0"},
        "TRAVELLING": {"decode.1/output.past.keys"},
    }[name]
    for result in results[1:]:
        gates = {gate.tensor for gate in result.gates}
        if result.dtype == "bfloat16" and name != "ONCE":  # R is that over all calls, at the worst of them
            gates, needed = {without_call(gate) for gate in gates}, {without_call(path) for path in judged}
            assert all(gate.reason.endswith(" calls") for gate in result.gates)
        else:
            needed = judged
        assert gates >= needed
        checks = {"TRAVELLING": {"same"}, "KEPT": {"kept", "same"}, "ONCE": {"kept"}}[name] | {"repeat"}
        assert {check.name for check in result.checks} >= checks


@pytest.mark.parametrize("name", MISTAKES)
def test_the_first_wrong_call_is_named(tmp_path: Path, name: str) -> None:
    said, first = MISTAKES[name]
    for result in verified(tmp_path, name, dtypes=("exact", "float32") if name == "UNSEEN" else ("float32",)):
        assert result.status in (Status.MISMATCH, Status.DIFFERENT, Status.SHAPE), result.reason
        assert said in result.reason or result.dtype == "exact", result.reason
        if first:
            assert result.first_divergence is not None
            assert result.first_divergence.tensor == first


def test_a_slot_that_no_call_wrote_keeps_its_bits(tmp_path: Path) -> None:
    (result,) = verified(tmp_path, "OVERWRITES", dtypes=("float32",))
    kept = next(check for check in result.checks if check.name == "kept")
    assert not kept.passed
    assert kept.detail.startswith("prefill/state.keys has 32 elements that the reference does not write, the first at ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "UNSEEN_BY_BOTH",
            "same: all/output.0 and prefill/output.0, decode.0/output.0, chunk/output.0, decode.1/output.0",
        ),
        ("MIXED_BY_BOTH", "same: prefill/output.y and row.0/output.y, row.1/output.y joined along dimension 0 are "),
    ],
)
def test_what_both_modules_do_wrong_in_one_of_two_ways_is_found(tmp_path: Path, name: str, text: str) -> None:
    """Each call is the reference's; but steps are not what they are at once, or a row not what it is alone."""
    for result in verified(tmp_path, name):
        assert result.status is Status.MISMATCH, (result.dtype, result.reason)
        assert result.reason.startswith(text)
        assert all(gate.passed for gate in result.gates)


def test_calls_that_nobody_makes_cannot_be_the_same(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"same of kept names decode\.7/output\.0, which no call returns; there are pre"
    ):
        verified(tmp_path, "UNSAID")


def test_a_pattern_that_names_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"state of once names kyes, which no tensor is called; there are none\."):
        verified(tmp_path, "NO_STATE")


X = torch.ones(2)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([Call(X)], "calls of a returns [<"),
        ({}, "calls of a returns {}; a dict of Calls is needed"),
        ({"a": (X,)}, "a dict of Calls is needed, for example"),
        ({"a/b": Call(X)}, "calls of a names a call 'a/b'; a text without / is needed"),
        ({"begin": Call(X)}, "calls of a names a call 'begin'"),
        ({"a": Call(Output("b")), "b": Call(X)}, "gives a the output of 'b', which is no call before it."),
    ],
)
def test_calls_of_another_form_are_refused(given: object, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_calls("calls of a", given)
    assert text in str(caught.value)


def test_a_part_that_no_call_returned_is_said() -> None:
    calls = Calls({"a": Call(X), "b": Call(Output("a", "nope"))})
    with pytest.raises(LookupError, match=r"names a part that the call a did not return: there are y, past$"):
        calls.run(lambda x: {"y": x, "past": None} if x is X else x)
