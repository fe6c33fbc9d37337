"""Drawn programs in exact arithmetic: true rewritings are proved, on ranks too, and no mistake is.

    python tests/support/fuzz_exact.py --count 10000           # programs
    python tests/support/fuzz_exact.py --count 2000 --bits 8   # how often one wrong element is accepted

Each program runs as its reference, in other true forms on two ranks, and with one mistake on two ranks; and in torch's
own float64, which says whether the mistake changes anything. A failure is printed with the --draw that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from exact_programs import RANKS, drawn, exactly, material, mistaken, plainly, rewritten, unproved
from exact_runs import Run, proved
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tp_harness.arithmetic.residues.field import Field

SAME = 1e-9  # relative to the largest element: up to which float64 may say that equal results differ
FIELDS = 4  # that the programs are tried in
OTHER = 1e-6  # above which it says that they are not equal, in whatever order it sums


@dataclass
class Tally:
    """What became of the programs."""

    ends: Counter[str] = field(default_factory=Counter)
    failures: dict[str, int] = field(default_factory=dict)  # a sentence -> a draw that repeats it
    steps: Counter[str] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    accepted: int = 0  # of single wrong elements
    elements: int = 0
    seconds: float = 0.0

    def fail(self, what: str, draw: int) -> None:
        """Note a failure of a kind."""
        self.ends["failed"] += 1
        self.failures.setdefault(what, draw)


def fuzz(count: int, *, number: int = 0, bits: int = 21, pairs: int = 2) -> Tally:
    """Try `count` programs, drawn by hypothesis from a fixed seed."""
    tally = Tally()
    start = time.process_time()

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64 - 1))
    def run(draw: int) -> None:
        attempt(draw, tally, bits, pairs)

    run()
    tally.seconds = time.process_time() - start
    return tally


def attempt(draw: int, tally: Tally, bits: int = 21, pairs: int = 2) -> None:
    """Try one program."""
    program, values = drawn(draw), material(draw)
    tally.steps.update(step.name for step, *_ in program.steps)
    plain = plainly(program, values)[0]
    if not plain.isfinite().all() or plain.abs().max() > 1e30:
        tally.ends["not finite"] += 1
        return
    numbers = field_of(draw % FIELDS, pairs, bits)
    right = exactly(program, values, numbers)[0]
    if (bits, pairs) == (21, 2):
        _true_forms(draw, tally, program, values, numbers, right, plain)
    _mistake(draw, tally, program, values, numbers, right, plain)


@lru_cache
def field_of(number: int, pairs: int, bits: int) -> Field:
    """A field; its tables take a third of a second to make."""
    return Field.drawn(number, pairs, bits)


def _true_forms(draw: int, tally: Tally, program, values, numbers: Field, right: Run, plain: torch.Tensor) -> None:
    if right.seen.escapes:
        tally.fail(f"{program}: {right.seen.escapes}", draw)
    if apart(right.numbers[0], plain) > OTHER:
        tally.fail(f"{program}: the shadow is {apart(right.numbers[0], plain):.0e} off", draw)
    for run in exactly(rewritten(program), values, numbers, RANKS):
        zeros = run.seen.zeros or right.seen.zeros
        if proved(right, run, numbers):
            tally.ends["proved"] += 1
        elif zeros or min(run.margin, right.margin) < SAME:
            tally.ends["a zero or a tie"] += 1
        else:
            tally.fail(f"{program}: a true form is not proved: {run.seen.escapes}", draw)
    other = unproved(program)
    if other is not None:
        end = "proved" if proved(right, exactly(other, values, numbers)[0], numbers) else "not proved"
        tally.ends[f"unknown identity {end}"] += 1


def _mistake(draw: int, tally: Tally, program, values, numbers: Field, right: Run, plain: torch.Tensor) -> None:
    found = mistaken(program)
    if found is None:
        return
    name, wrong = found
    others = plainly(wrong, values, RANKS)
    for run, other in zip(exactly(wrong, values, numbers, RANKS), others, strict=True):
        difference = apart(other, plain)
        if not difference > SAME:
            tally.ends["inert mistake"] += 1
            continue
        if proved(right, run, numbers):
            tally.ends["mistake proved"] += 1
            tally.fail(f"{program}: mistake {name}, {difference:.0e} off, is proved", draw)
        elif difference > OTHER:
            tally.ends["mistake not proved"] += 1
            _one_element(draw, tally, numbers, right, run, (other - plain).abs() > OTHER * plain.abs().max())
        else:
            tally.ends["small mistake not proved"] += 1


def _one_element(draw: int, tally: Tally, numbers: Field, right: Run, run: Run, wrong: torch.Tensor) -> None:
    """Whether one wrong element, drawn among them, has the right residue."""
    places = wrong.reshape(-1).nonzero().reshape(-1)
    if len(places):
        place = places[draw % len(places)]
        tally.elements += 1
        tally.accepted += int(numbers.same(right.numbers, run.numbers).reshape(-1)[place])


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest element."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def main() -> int:
    """Print what became of the programs; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="programs")
    parser.add_argument("--bits", type=int, default=21, metavar="N", help="of a prime; with other than 21, one pair")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the programs")
    parser.add_argument("--draw", type=int, metavar="N", help="only this program, as a failure names it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = 2 if arguments.bits == 21 else 1
    if arguments.draw is not None:
        tally = Tally()
        attempt(arguments.draw, tally, arguments.bits, pairs)
    else:
        tally = fuzz(arguments.count, number=arguments.seed, bits=arguments.bits, pairs=pairs)
    for end, count in sorted(tally.ends.items()):
        print(f"{count:7} {end}")
    print(f"{tally.accepted} of {tally.elements} single wrong elements accepted; {tally.seconds:.0f} CPU s")
    for what, draw in tally.failures.items():
        print(f"  --draw {draw}: {what}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
