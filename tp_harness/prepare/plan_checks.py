"""The checks of every target before any rank starts: its plan at every degree, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..case.placed import check_patterns, check_same, input_placements, output_placements
from ..case.plan import check_plan, check_submodules, stand_in_group
from ..case.rehearsal import UnrehearsedError, makes_groups
from ..case.tried_placements import try_placement
from ..checkpoint.checkpoint import TensorSpec
from ..config.options import Resolved
from ..parallel.placements import Placement, Replicate
from ..ranks.job import Subject, Task
from ..results.tensor_names import said
from .expectation import Expectation
from .oracle import make_reference, specs_of
from .own_cases import OwnCase


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The tensors of a target, after its modules were built and its parameters placed at every degree (ranks)."""

    specs: tuple[TensorSpec, ...]
    placed: Mapping[int, Mapping[str, Placement]]  # by degree, every parameter and buffer
    unrehearsed: Mapping[int, str]  # by degree, why no module could be made here; the ranks check the same


def check_target(
    options: Resolved, subject: Subject, own: OwnCase | None, task: Task, *, process_group: bool
) -> Checked:
    """Build a task's modules once, and place every parameter at every degree; arguments as of `prepare_one`.

    Raises:
        UsageError: a case that cannot be built, or a plan that does not divide.
    """
    dtype = options.dtypes[0]
    case = subject.case(task, dtype=dtype, tp=1)
    reference = make_reference(case)
    specs = specs_of(case, reference)
    if own:
        check_submodules(case, "reference", reference)
        own.check_init(options, specs)
    shapes, lingering = {spec.name: spec.shape for spec in specs}, False
    placed: dict[int, Mapping[str, Placement]] = {}
    unrehearsed: dict[int, str] = {}
    for tp in options.degrees:
        at_degree = subject.case(task, dtype=dtype, tp=tp)
        with stand_in_group(tp, real=case.may_use_torch_distributed and process_group):
            try:
                module, placed[tp] = check_plan(at_degree, shapes, tp, lingering=lingering)
            except UnrehearsedError as error:
                unrehearsed[tp] = str(error)
                names = at_degree.plan if case.rename else (name.removeprefix(case.prefix) for name in shapes)
                placed[tp] = {name: at_degree.plan.get(name, Replicate()) for name in names}
                continue
            finally:
                lingering |= makes_groups()
            if own:
                check_submodules(at_degree, "sharded module", module)
                own.check_kernels(options, module)
    return Checked(specs=specs, placed=placed, unrehearsed=unrehearsed)


def check_placements(options: Resolved, subject: Subject, task: Task, expectation: Expectation) -> None:
    """Check that inputs and outputs divide at every degree as the case places them.

    Raises:
        UsageError: one does not divide, the case places more or fewer outputs, or a pattern names nothing.
    """
    inputs, outputs = expectation.inputs, expectation.oracle.outputs
    for tp in options.degrees:
        case = subject.case(task, dtype=options.dtypes[0], tp=tp)
        check_patterns(case, inputs, outputs)
        check_same(case, outputs)
        placed = {**input_placements(case, inputs), **output_placements(case, outputs)}
        for name, tensor in {**inputs, **outputs}.items():
            try_placement(placed[name], tensor, f"{said(name)} of {case.name}", tp)
