"""prove_accuracy: a built module in exact arithmetic beside its single-core module, by the same code as in `verify`.

Each rank of the built module makes it once more and writes down what a rank of `verify` does; the same judge decides.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from ..arithmetic.residues.field import Field
from ..case.case import Case, Tensors
from ..case.state_dict import weights_of
from ..checkpoint.checkpoint import Checkpoint, write_checkpoint
from ..config.dtypes import EXACT
from ..errors import UsageError, told
from ..judge.evidence import Evidence
from ..judge.gather import read_outputs
from ..judge.judge import judge
from ..judge.proofs import without_crash
from ..parallel.group import Group
from ..parallel.placements import Placement
from ..prepare.expectation import expect
from ..prepare.oracle import specs_of, tied_names
from ..ranks.device import Device
from ..ranks.job import Job, Subject, Task
from ..ranks.rank import DtypeRunner
from ..ranks.rank_files import write_output
from ..ranks.rank_report import RankReport
from ..results.result import Result, Status
from .closeness import OutputError
from .module_server import EXACTLY, ShardedModule

SEED = 0


@dataclass(frozen=True, kw_only=True)
class GivenCase(Subject):
    """A Case that is at hand, and not in a file."""

    given: Case

    def case(self, task: Task, *, dtype: str, tp: int) -> Case:
        """The Case, the same for every task, dtype and degree."""
        del task, dtype, tp
        return self.given


def prove_accuracy(module: ShardedModule, inputs: Sequence[Tensors], reference: nn.Module) -> list[Result]:
    """Compare a built module with its single-core module in exact arithmetic, without a tolerance (docs/exact.md).

    Args:
        module: what build_module returned on CPU ranks.
        inputs: a list of tuples of full tensors, any shapes and dtypes.
        reference: the single-core module, whose parameters have the names of the built module's; it is not changed.

    Returns:
        For each input a result, PROVED or NOT PROVED; its `reason` says what could not be proved and why.

    Raises:
        OutputError: an AssertionError: the module is another function.
        UsageError: `module` or `reference` is none, the two have other parameters, or there are no inputs.
        ShardedModuleError: a rank is gone.
    """
    for given, needed, what in (
        (module, ShardedModule, "what build_module returns on CPU ranks"),
        (reference, nn.Module, "the single-core torch.nn.Module, whose parameters have the built module's names,"),
    ):
        if not isinstance(given, needed):
            raise UsageError(f"prove_accuracy was given a {type(given).__name__}; {what} is needed.")
    if not inputs:
        raise UsageError("prove_accuracy was given no inputs; a list of tuples of tensors is needed.")
    results = []
    with tempfile.TemporaryDirectory(dir=module.folder) as folder:
        tied = _write_shared(reference, folder)
        for number, arguments in enumerate(inputs):
            case = _case(partial(copy.deepcopy, reference), nn.Identity, arguments, {})  # the ranks have the other one
            result = _compared(module, _job(case, module.tp_degree, folder, tied, number), case)
            if result.status.failed:
                raise OutputError(f"in exact arithmetic, {result.reason}", result.status.value)
            results.append(result)
    return results


def _write_shared(reference: nn.Module, folder: str) -> dict[str, str]:
    """Write what every call reads, the reference's parameters and the tables; returns which parameters are tied."""
    case = _case(lambda: reference, nn.Identity, (), {})
    specs, weights = specs_of(case, reference), weights_of(reference, "the reference")
    job = _job(case, 1, folder, {}, 0)
    write_checkpoint(Path(job.weights[0][0]), specs, lambda spec: weights[spec.name].detach())
    Field.drawn(SEED).write(job.field_path(job.tasks[0]))
    return tied_names(specs)


def _compared(module: ShardedModule, job: Job, case: Case) -> Result:
    (task,), checkpoint = job.tasks, Checkpoint(map(Path, job.weights[0]))
    expectation = expect(job, task, checkpoint, SEED)
    answers = map(pickle.loads, module.ask(EXACTLY, pickle.dumps((job.folder, job.tied, task.number))))
    plans, errors, theirs = zip(*answers, strict=True)
    error = next(filter(None, errors), "")
    if any(theirs):
        raise UsageError(error)
    blank = Result(
        component=module.name,
        tp=module.tp_degree,
        backend="gloo",
        dtype=EXACT,
        layer=0,
        draws=1,
        seed=SEED,
        status=Status.CRASH,
        reason=error,
    )
    if error:
        return without_crash(blank)
    outputs = {"*": module.output}
    evidence = Evidence(
        case=replace(case, plan=plans[0], output=outputs),
        tp=module.tp_degree,
        dtype=EXACT,
        expectation=expectation,
        ranks=read_outputs(job, task),
        checkpoint=checkpoint,
    )
    return judge(evidence, blank)


def run_exactly(make: Callable[[], nn.Module], plan: Mapping[str, Placement], group: Group, asked: bytes) -> bytes:
    """What a rank does: it makes its module, runs it on the weights and inputs that `asked` names, and writes outputs.

    Returns:
        The pickled plan; what was raised, "" for nothing; and whether it is a mistake of the caller's.
    """
    job, error, theirs = _job(_case(nn.Identity, make, (), plan), group.size, *pickle.loads(asked)), "", False
    (task,), checkpoint = job.tasks, Checkpoint(map(Path, job.weights[0]))
    try:
        kept, run = DtypeRunner(job, task, EXACT, group=group, checkpoint=checkpoint, device=Device()).run()
    except Exception as raised:  # the module has run in its own dtype
        theirs = isinstance(raised, UsageError)
        error = str(raised) if theirs else f"rank {group.rank} of {group.size} failed with {told(raised)}"
    else:
        report = RankReport(rank=group.rank, core="", config_hash="", wall_s=0.0, cpu_s=0.0, runs={EXACT: run})
        write_output(job.output_path(task, group.rank), kept, report)
    return pickle.dumps((dict(plan), error, theirs))


def _case(
    reference: Callable[[], nn.Module],
    sharded: Callable[[], nn.Module],
    inputs: Tensors,
    plan: Mapping[str, Placement],
) -> Case:
    return Case(
        name="the built module", reference=reference, sharded=sharded, inputs=lambda _generator: inputs, plan=plan
    )


def _job(case: Case, tp: int, folder: str, tied: Mapping[str, str], number: int) -> Job:
    """The job of one call; its outputs have names of their own, and what `_write_shared` wrote is that of all calls."""
    return Job(
        tp=tp,
        subject=GivenCase(given=case, batch_size=1, seq_len=1),
        tasks=(Task(component="module", layer=0, draw=0, dtype=EXACT, number=number),),
        dtypes=(EXACT,),
        weights=((str(Path(folder) / "weights.safetensors"),),),
        folder=folder,
        tied=dict(tied),
    )
