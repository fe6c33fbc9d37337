"""What exact arithmetic keeps: digits that an operation does not round, products of roots, and numbers written down."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from exact_runs import FIELD, inputs, proved, run

from tp_harness.arithmetic.exact import Exact
from tp_harness.arithmetic.residues.field import Field
from tp_harness.arithmetic.residues.primes import draw_pairs, square_root
from tp_harness.arithmetic.variables import Variable, extent, places

Way = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    ("kept", "same"),
    [
        (lambda x: (x * 8).float(), lambda x: x.float() * 8),
        (lambda x: (x / 4).float(), lambda x: x.float() / 4),
        (lambda x: (0 * x).float(), lambda x: x.float() * 0),
        (lambda x: (-x).float(), lambda x: -x.float()),
        (lambda x: (x * (torch.arange(4) != 1)).float(), lambda x: x.float() * torch.tensor([1, 0, 1, 1])),
    ],
    ids=["times 8", "divided by 4", "times 0", "negated", "masked"],
)  # fmt: skip
def test_a_product_with_a_power_of_two_is_not_rounded_in_16_bits(kept: Way, same: Way) -> None:
    [x] = (x.to(torch.bfloat16) for x in inputs((3, 4)))
    assert proved(run(same, x), run(kept, x))
    assert not proved(run(lambda x: x.float() * 3, x), run(lambda x: (x * 3).float(), x)), "3 x has more digits"


def test_roots_multiply() -> None:
    for pair in FIELD.pairs:
        for m in (pair.p, pair.q):
            two, three, eight = (square_root(n, m) for n in (2, 3, 8))
            assert two and three and eight
            assert (two * two - 2) % m == (three * three - 3) % m == 0
            assert two * eight % m == 4 and square_root(6, m) == two * three % m and square_root(36, m) == 6
    [x] = inputs((3, 4))
    assert proved(run(lambda x: x * 32**-0.5 * 2**0.5, x), run(lambda x: x / 4, x))


def test_a_number_without_a_root_has_none() -> None:
    [pair] = draw_pairs(1, random.Random(1))
    without = next(n for n in range(2, 200) if pow(n, (pair.p - 1) // 2, pair.p) != 1)
    assert square_root(without, pair.p) is None and square_root(without * 4, pair.p) is None
    assert square_root(without**2, pair.p) == without, "it is a factor twice"


@pytest.mark.parametrize("extreme", [torch.amax, torch.amin, lambda x, dim: x.gather(dim, x.argmax(dim, keepdim=True))])
def test_of_unknown_numbers_the_shadows_decide(extreme: Callable[..., torch.Tensor]) -> None:
    a, b = inputs((4, 6), (5, 6))
    right = extreme(torch.cdist(a.double(), b.double()), 1)
    found = run(lambda a, b: extreme(torch.cdist(a, b), 1), a, b).numbers
    assert found is not None
    torch.testing.assert_close(found[0], right, rtol=1e-6, atol=0)


def test_numbers_that_are_written_down_come_back_with_their_exponents() -> None:
    exact = Exact(FIELD)
    [x] = inputs((3, 4))
    exact.draw("x", x)
    with exact.computing():
        y = torch.cat((x * 3 - 1, x.exp()))  # the exponents of the second are unknown
    shadow, residues = exact.split(y, exponents=True)
    assert len(residues) == 4 and len(exact.split(y)[1]) == 2
    again = exact.joined(shadow, residues)
    torch.testing.assert_close(exact.memory.read(again), exact.memory.read(y), equal_nan=True, rtol=0, atol=0)
    with exact.computing():
        raised = [z[:3].exp() for z in (y, again)]
    assert exact.same(*raised)
    assert exact.joined(*exact.split(torch.arange(3))) is not None


def test_residues_are_the_same_different_or_unknown() -> None:
    exact = Exact(FIELD)
    x, y = inputs((3, 4), (3, 4))
    for name, tensor in (("x", x), ("y", y)):
        exact.draw(name, tensor)
    with exact.computing():
        twice, sum_, other, lost = x * 2, x + x, x + y, torch.cdist(x, y)
        partly = torch.cat((x * 2, lost[:, :3].new_zeros(0, 4)))
    assert exact.same(twice, sum_) and exact.same(twice, partly)
    assert exact.same(twice, other) is False
    assert exact.same(lost, lost) is None, "nothing is known"


def test_what_is_received_comes_before_what_is_written_after_it() -> None:
    exact = Exact(FIELD)
    value, buffer = exact.draw("value", torch.ones(1)), torch.zeros(3)
    sent = exact.field.constants(torch.full((3,), 5.0))

    def complete() -> bool:
        exact.memory.write(buffer, sent)
        return True

    with torch.no_grad(), exact.computing():
        exact.memory.await_(buffer, complete)
        buffer[torch.tensor([0])] = value
    assert exact.memory.read(buffer)[0].tolist() == [1.0, 5.0, 5.0]


def test_inverted_zeros_are_those_of_the_run() -> None:
    field = Field.drawn(3, pairs=1, bits=8)
    first = Exact(field)
    with torch.no_grad(), first.computing():
        first.draw("x", torch.ones(4096)).reciprocal()
    second = Exact(field)
    with torch.no_grad(), second.computing():
        second.draw("x", torch.ones(4)) * 2
    assert first.seen.zeros > 0
    assert second.seen.zeros == 0


def test_a_variable_that_is_copied_into_whole_numbers_leaves_exact_arithmetic() -> None:
    found = run(lambda x: torch.zeros(3, 4, dtype=torch.int32).copy_(x).float(), *inputs((3, 4)))
    assert found.seen.escapes == ["floating-point numbers are made torch.int32"]


@pytest.mark.parametrize(
    "of",
    [
        lambda x: x,
        lambda x: x[2:5],
        lambda x: x[2:5, 1:3],
        lambda x: x.view(-1)[3:17],
        lambda x: x.view(3, 10)[1:],
        lambda x: x[:, 2],
    ],
    ids=["all", "rows", "block", "run", "other-rows", "column"],
)
def test_the_elements_of_a_copied_block_keep_their_places(of: Way) -> None:
    whole, copy = torch.empty(6, 10), torch.empty(6, 5)
    part = Variable("w", *extent(whole), whole.dtype).copied(whole[:, 2:7], copy)
    assert part
    right = of(torch.arange(60).view(6, 10)[:, 2:7].contiguous())
    assert torch.equal(torch.as_tensor(places(of(copy), part)).long() + torch.zeros_like(right), right)
