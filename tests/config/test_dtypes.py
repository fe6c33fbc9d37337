"""The dtypes of a run: their order, and what is left of the defaults where one of them cannot be run."""

from __future__ import annotations

import re

import pytest

from tp_harness.config import dtypes
from tp_harness.config.options import Options, resolve
from tp_harness.errors import UsageError


@pytest.fixture(autouse=True)
def _all_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "DEFAULT_DTYPES", ("exact", "float64", "bfloat16"))


def test_a_run_has_its_dtypes_in_one_order() -> None:
    assert resolve(Options(dtypes=("float16", "bfloat16", "float32", "exact", "float64"))).dtypes == dtypes.DTYPES


@pytest.mark.parametrize(
    ("backend", "kernels", "left"),
    [
        ("auto", "torch", ("exact", "float64", "bfloat16")),
        ("gloo", "torch", ("exact", "float64", "bfloat16")),
        ("local", "nki", ("bfloat16",)),
        ("xla", "torch", ("float64", "bfloat16")),
        ("neuron", "torch", ("bfloat16",)),
    ],
)
def test_a_default_that_cannot_be_run_is_left_out(backend: str, kernels: str, left: tuple[str, ...]) -> None:
    assert resolve(Options(backend=backend, kernels=kernels)).dtypes == left
    if backend != "auto":
        assert dtypes.dtypes_on(resolve(Options(kernels=kernels)).dtypes, backend, kernels) == left


def test_a_run_of_which_the_backend_can_run_nothing_is_refused() -> None:
    message = (
        "--dtype is exact, but --backend is neuron: exact arithmetic runs eager code on the CPU; choose --backend gloo "
        "or local."
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        dtypes.dtypes_on(("exact",), "neuron", "torch")
