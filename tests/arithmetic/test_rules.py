"""The rules of operations against exact rational arithmetic, and what decisions, casts and constants come to."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_runs import FIELD, Run, inputs, proved, run
from torch import Tensor

from tp_harness.arithmetic.residues import numbers
from tp_harness.arithmetic.residues.constants import meant
from tp_harness.arithmetic.seen import TIE

A = torch.tensor([[0.5, -3.0, 1.25], [2.0, 0.75, -0.125]])
B = torch.tensor([[1.5, 0.25, -2.0], [-1.0, 4.0, 0.625]])

RATIONAL: dict[str, Callable] = {  # of tensors and of arrays of fractions alike
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "reciprocal": lambda a, b: 1 / a,
    "negative-power": lambda a, b: a**-3,
    "mean": lambda a, b: a.mean(1) * b.mean(),
    "sum": lambda a, b: a.sum(0) + b.sum(),
    "matmul": lambda a, b: a @ b.T,
    "cumsum": lambda a, b: a.cumsum(1) / b,
    "prod": lambda a, b: a.prod(1),
    "variance": lambda a, b: ((a - a.mean()) ** 2).mean(),
}


def fractions(x: Tensor) -> np.ndarray:
    return np.array([Fraction(value) for value in x.flatten().tolist()], dtype=object).reshape(x.shape)


def depending(function: Callable, *constants: Tensor) -> Run:
    """A run on constants that are held as if they depended on a variable."""
    return run(lambda z: function(*(z - z + c for c in constants)), *inputs((1,)))


@pytest.mark.parametrize("name", RATIONAL)
def test_residues_are_those_of_rational_arithmetic(name: str) -> None:
    found = depending(RATIONAL[name], A, B).numbers
    assert found is not None
    right = np.array(RATIONAL[name](fractions(A), fractions(B)), dtype=object).reshape(-1)
    assert found[0].flatten().tolist() == pytest.approx([float(x) for x in right], rel=1e-14)
    for row, p in zip(FIELD.value_rows, FIELD.primes, strict=True):
        wanted = [x.numerator * pow(x.denominator, -1, p) % p for x in right]
        assert [int(value) % p for value in found[row].flatten()] == wanted


@pytest.mark.parametrize("function", ["exp", "reciprocal", "sqrt", "erf", "sigmoid", "tanh", "silu"])
def test_the_order_in_memory_changes_no_number(function: str) -> None:
    of = getattr(torch.nn.functional if function == "silu" else torch, function)
    given = inputs((3, 4, 5))

    def there_and_back(x: Tensor) -> Tensor:
        return of((2 * x * x).permute(2, 0, 1)).permute(1, 2, 0)

    assert proved(run(lambda x: of(2 * x * x), *given), run(there_and_back, *given))


def test_a_sum_of_more_products_than_float64_holds_is_exact() -> None:
    count = 2 * FIELD.longest + 7
    a, b = (FIELD.draw(name, torch.ones(count), 0) for name in ("a", "b"))
    found = numbers.product(FIELD, a.unsqueeze(1), b.unsqueeze(2))
    for row, p in zip(FIELD.value_rows, FIELD.primes, strict=True):
        wanted = sum(int(x) * int(y) for x, y in zip(a[row], b[row], strict=True))
        assert int(found[row].item()) % p == wanted % p


SAME_CONSTANTS = {
    "tenths": (0.1 + 0.2, 0.3),
    "root": (128**-0.5, 1 / math.sqrt(128)),
    "third": (1 / 3, 2 / 6),
    "epsilon": (float(np.float32(1e-5)), 1e-5),
    "small-epsilon": (float(np.float32(1e-6)), 1e-6),
    "percent": (float(np.float32(0.07)), 0.07),
}
OTHER_CONSTANTS = {
    "epsilons": (1e-5, 1e-6),
    "near": (0.3, 0.300001),
    "root": (128**-0.5, 0.0884),
    "digits": (0.7, 0.7 + 8 * math.ulp(0.7)),
    "singles": (float(np.float32(0.07)), float(np.nextafter(np.float32(0.07), np.float32(1)))),
}


@pytest.mark.parametrize("name", SAME_CONSTANTS)
def test_one_number_written_in_two_ways_is_one(name: str) -> None:
    first, second = SAME_CONSTANTS[name]
    assert meant(first) == meant(second)
    assert proved(run(lambda x: x * first, *inputs((3,))), run(lambda x: second * x, *inputs((3,))))


@pytest.mark.parametrize("name", OTHER_CONSTANTS)
def test_two_numbers_are_two(name: str) -> None:
    first, second = OTHER_CONSTANTS[name]
    assert not proved(run(lambda x: x * first, *inputs((3,))), run(lambda x: x * second, *inputs((3,))))


MARGINS = {  # a decision -> whether it is sure
    "clear": (lambda x, y: (x > y + 1).float() * x, True),
    "equal-values-of-two-variables": (lambda x, y: (x > y).float() * x, False),
    "a-maximum-of-two": (torch.maximum, False),
    "near": (lambda x, y: (x > y + 1e-12).float() * x, False),
    "the-same-number": (lambda x, y: (x * 0.3 >= x / 10 * 3).float() * x, True),
    "relu-of-zero": (lambda x, y: (x - x).relu() + x, True),
    "relu-near-zero": (lambda x, y: (x - y).relu() + x, False),
    "masked": (lambda x, y: x.masked_fill(torch.tensor([True, False, False]), -1e9).amax() * y, True),
    "masked-by-sum": (lambda x, y: (x + torch.tensor([-math.inf, 0.0, 0.0])).amax() * y, True),
    "second-and-third": (lambda x, y: torch.cat([x, x, y]).amax() * x, False),
    "topk": (lambda x, y: torch.cat([x, x + 4]).topk(2).values.sum() * x, True),
    "topk-of-equal": (lambda x, y: torch.cat([x, x]).topk(1).values * x, False),
    "to-bool": (lambda x, y: x * (x - y).bool(), False),
    "signbit": (lambda x, y: torch.where((x - y).signbit(), x, y), False),
}


@pytest.mark.parametrize("name", MARGINS)
def test_a_decision_is_sure_or_a_tie(name: str) -> None:
    decision, sure = MARGINS[name]
    x = torch.tensor([1.0, 2.0, -3.0])
    done = run(decision, x, x.clone())
    assert done.seen.branches and not done.seen.escapes
    assert (done.margin > TIE) == sure


def test_equal_numbers_are_equal_in_spite_of_rounding() -> None:
    (x,) = inputs((100,))
    for function, wanted in (
        (lambda x: (x / 10 * 3 > x * 0.3) | (x / 10 * 3 < x * 0.3), False),
        (lambda x: (x / 10 * 3 >= x * 0.3) & (x / 10 * 3 == x * 0.3), True),
        (lambda x: torch.stack([x / 10 * 3, x * 0.3]).argmax(0) == 0, True),
    ):
        assert (run(function, x).plain == wanted).all()
    assert not (x.double() / 10 * 3 == x.double() * 0.3).all()


def test_branches_are_counted() -> None:
    x = torch.tensor([-2.0, -0.5, 0.5, 3.0])
    done = run(lambda x: x.relu() + x.clamp(-1, 1) + x.topk(2).values.sum(), x).seen.branches
    assert done["relu"].counts == {"below": 2, "all": 4}
    assert done["clamp"].counts == {"below": 1, "above": 1, "all": 8}
    assert done["topk"].counts == {"chosen": 2, "all": 4}


ROUNDED: dict[str, Callable] = {
    "cast": lambda x: x.bfloat16().float(),
    "buffer": lambda x: torch.zeros(3, dtype=torch.bfloat16).copy_(x).float(),
    "accumulated": lambda x: torch.zeros(3, dtype=torch.bfloat16).add_(x).float(),
    "out": lambda x: torch.add(x, 0, out=torch.empty(3, dtype=torch.bfloat16)).float(),
    "slice": lambda x: torch.zeros(2, 3).bfloat16().index_put((torch.tensor(1),), x.bfloat16())[1].float(),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_a_rounding_to_fewer_digits_is_another_function(name: str) -> None:
    (x,) = inputs((3,))
    done, plain = run(ROUNDED[name], x), run(lambda x: x * 1, x)
    assert done.numbers is not None and not done.seen.escapes
    assert done.numbers[0].tolist() == x.bfloat16().tolist()
    assert not FIELD.same(done.numbers, plain.numbers).any()
    assert proved(done, run(ROUNDED["cast"], x))


def test_more_digits_are_no_rounding() -> None:
    (x,) = inputs((3,))
    assert proved(run(lambda x: x.double().float() * 1, x), run(lambda x: x * 1, x))


NOT_FOLLOWED: dict[str, Callable] = {
    "product-of-scattered": lambda x: x.scatter(0, torch.tensor([0, 0]), x[:2], reduce="multiply"),
    "largest-of-scattered": lambda x: x.scatter_reduce(0, torch.tensor([0, 0]), x[:2], "amax"),
    "mean-of-indexed": lambda x: x.index_reduce(0, torch.tensor([0, 0]), x[:2], "mean"),
    "median": lambda x: x.median() * x,
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_is_no_sum_is_not_taken_for_one(name: str) -> None:
    done = run(NOT_FOLLOWED[name], *inputs((3,)))
    assert done.seen.escapes and done.numbers is not None and done.numbers[1:].isnan().any()


def test_where_all_is_masked_attention_is_zero() -> None:
    (x,) = inputs((1, 1, 3, 4))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    done = run(lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask), x)
    assert done.numbers is not None and (done.numbers[[0, *FIELD.value_rows], :, :, 1] == 0).all()
    assert not done.seen.zeros and done.numbers[0].isfinite().all()


def test_unknown_is_never_the_same() -> None:
    nan = FIELD.scalar(math.nan)
    assert not FIELD.same(nan, nan) and FIELD.scalar(math.inf)[1:].eq(0).all()
    assert not FIELD.same(FIELD.scalar(math.inf), FIELD.scalar(0.0)) and FIELD.same(*[FIELD.scalar(-math.inf)] * 2)
