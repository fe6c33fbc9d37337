"""Closeness: what never passes, whatever the tolerances, and what rtol is scaled by."""

from __future__ import annotations

import pytest
from served_modules import X

from tp_harness.testing.closeness import assert_close


@pytest.mark.parametrize(
    ("expected", "actual", "text"),
    [
        (X, X[:1], r"shape \[1, 3, 8\] instead of \[2, 3, 8\]"),
        (X, X.double(), "dtype torch.float64 instead of torch.float32"),
        (X[:0], X[:0], "is empty"),
        (X, X / 0, r"actual value at \[0, 0, 0\] is nan"),
        (X / 0, X / 0, "expected value at"),
        ((X, X), X, "1 outputs instead of 2"),
        ((), (), "nothing would be compared"),
        ([X, "x"], [X, X], "a tensor or a tuple of tensors"),
        (X, X + 1e-3, r"48 of 48 elements differ by more than 5.7e-05"),
    ],
    ids=["shape", "dtype", "empty", "nan", "nan_both", "count", "none", "type", "values"],
)
def test_what_closeness_never_passes(expected: object, actual: object, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        assert_close(expected, actual)  # type: ignore[arg-type]


def test_rtol_is_scaled_by_the_largest_expected_element() -> None:
    off = X + 0.04  # the largest element is 4.7: within 1 % of it, and far from 1 % of the small ones
    assert_close(X, off, rtol=0.01, atol=0.0)
    with pytest.raises(AssertionError, match="elements differ"):
        assert_close(X, off, rtol=0.008, atol=0.0)
