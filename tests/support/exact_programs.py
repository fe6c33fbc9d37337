"""Programs that the fuzz of exact arithmetic draws, and their runs: on one rank, or on two that are threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import exact_layers
import exact_moves
import exact_pointwise
import torch
from exact_runs import Run
from exact_step import Env, Function, Step

from tp_harness.arithmetic.exact import Exact
from tp_harness.arithmetic.residues.field import Field
from tp_harness.backends.local_group import LocalGroup, Turns
from tp_harness.parallel.group import Group

STEPS: tuple[Step, ...] = (*exact_pointwise.STEPS, *exact_layers.STEPS, *exact_moves.STEPS)
MOST = 1e6  # a magnitude above which a step's result is scaled down, in every form alike
RANKS = 2


@dataclass(frozen=True)
class Program:
    """Steps with the places of their operands among what came before, and the function that each is computed by."""

    steps: tuple[tuple[Step, int, int], ...]
    functions: tuple[Function, ...]
    draw: int

    def __call__(self, env: Env, *given: torch.Tensor) -> torch.Tensor:
        """The sum of the last two results, each (4, 6)."""
        values = list(given)
        for (_, first, second), function in zip(self.steps, self.functions, strict=True):
            values.append(function(env, values[first], values[second]))
        return values[-1] + values[-2] * 0.7

    def __str__(self) -> str:
        """The names of its steps."""
        return " ".join(f"{step.name}({first},{second})" for step, first, second in self.steps)


def drawn(draw: int) -> Program:
    """A program of 2 to 6 steps as a reference writes them."""
    source = random.Random(draw)
    steps = tuple(
        (source.choice(STEPS), max(0, 1 + i - source.choice((0, 0, 0, 1, 2))), source.randrange(2 + i))
        for i in range(source.randint(2, 6))
    )
    return Program(steps, tuple(step.forms[0] for step, *_ in steps), draw)


def rewritten(program: Program) -> Program:
    """The same program in other true forms."""
    source = random.Random(f"forms {program.draw}")
    return replace(program, functions=tuple(source.choice(step.forms) for step, *_ in program.steps))


def unproved(program: Program) -> Program | None:
    """The same program with one step in a form of which exact arithmetic does not know that it is true."""
    places = [i for i, (step, *_) in enumerate(program.steps) if step.unproved]
    return _with(program, places[-1], program.steps[places[-1]][0].unproved[0]) if places else None


def mistaken(program: Program) -> tuple[str, Program] | None:
    """A rewritten program with a mistake in one step, and its name; None if no step has one."""
    source = random.Random(f"mistake {program.draw}")
    places = [i for i, (step, *_) in enumerate(program.steps) if step.mistakes]
    if not places:
        return None
    place = source.choice(places)
    step = program.steps[place][0]
    which = source.randrange(len(step.mistakes))
    return f"{step.name} {which}", _with(rewritten(program), place, step.mistakes[which])


def _with(program: Program, place: int, function: Function) -> Program:
    functions = program.functions
    return replace(program, functions=(*functions[:place], function, *functions[place + 1 :]))


def material(draw: int) -> list[torch.Tensor]:
    """Two inputs (4, 6), a weight (6, 6) and a bias (6,), float32."""
    generator = torch.Generator().manual_seed(draw % 2**63)
    return [torch.randn(shape, generator=generator) for shape in ((4, 6), (4, 6), (6, 6), (6,))]


def exactly(program: Program, given: list[torch.Tensor], field: Field, ranks: int = 1) -> list[Run]:
    """The run of each rank in exact arithmetic."""
    given = [x.clone() for x in given]
    exact = Exact(field)
    field.zeros = 0
    for i, x in enumerate(given):
        exact.draw(f"x{i}", x)

    def run(group: Group) -> Run:
        with torch.no_grad(), exact.computing():
            out = program(Env(given[2], given[3], group), *given[:2])
        return Run(exact.taken(out), exact.seen, out)

    return on_ranks(run, ranks)


def plainly(program: Program, given: list[torch.Tensor], ranks: int = 1) -> list[torch.Tensor]:
    """The result of each rank in torch's own float64."""
    wide = [x.double() for x in given]

    def run(group: Group) -> torch.Tensor:
        with torch.no_grad():
            return program(Env(wide[2], wide[3], group), *wide[:2])

    with _float64():
        return on_ranks(run, ranks)


@contextmanager
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def on_ranks(run: Callable[[Group], object], ranks: int) -> list:
    """What `run` returns for the group of each rank; several are threads that take turns."""
    if ranks == 1:
        return [run(Group())]
    turns, results = Turns(ranks), {}

    def be(rank: int) -> None:
        try:
            turns.wait(rank)
            results[rank] = run(LocalGroup(rank, turns))
            turns.leave(rank)
        except BaseException as error:
            turns.fail(rank, repr(error), "")
            results.setdefault(rank, error)

    threads = [threading.Thread(target=be, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return [results[rank] for rank in range(ranks)]
