"""Which backend sees which fault of the compiled path: each is run on each backend, beside the clean components."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..backends import Backend, Session, run_to_end
from ..config.options import Resolved
from ..errors import UsageError
from ..faults import Fault
from ..judge.gather import read_outputs, remove_outputs
from ..judge.judge import judge
from ..prepare.material import Progress
from ..prepare.prepare import prepare_one
from ..ranks.job import Task
from ..results.result import Result, Status
from ..text_table import TextTable
from .bench import Bench

CLEAN = "(no fault)"


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One verdict, `status` and `reason` as a run gives them; `fault` is `CLEAN` for a component as it should be.

    `by` is the check that rejected it, or the kind of number that was over its limit.
    """

    fault: str
    component: str
    backend: str
    tp: int
    status: str
    reason: str
    by: str

    @property
    def seen(self) -> bool:
        """Whether the verdict rejects it."""
        return not Status(self.status).passed


def sightings(
    backends: Sequence[Backend], faults: Sequence[Fault], options: Resolved, progress: Progress
) -> list[Sighting]:
    """Every fault on every backend at every degree of the options, in float32, after the clean components."""
    targets = tuple(dict.fromkeys((fault.component, fault.layer) for fault in faults))
    options = replace(options, targets=targets, draws=1, dtypes=("float32",))
    found: list[Sighting] = []
    for backend in backends:
        with backend.open() as session:
            preparation = prepare_one(options)
            with preparation.folder() as folder:
                bench = Bench(preparation, folder)
                for tp in options.degrees:
                    progress(f"{backend.name}, tp {tp}")
                    found += _at_degree(bench, session, backend.name, faults=faults, tp=tp)
    return found


def _at_degree(bench: Bench, session: Session, backend: str, *, faults: Sequence[Fault], tp: int) -> Iterator[Sighting]:
    """All of them in one start of the ranks: a fault leaves outputs or a finding, and no rank behind.

    Raises:
        UsageError: the ranks failed.
    """
    names = {Task(component=f.component, layer=f.layer, draw=0, fault=f.name): f.name for f in faults}
    names = {task.clean: CLEAN for task in names} | names
    job = replace(bench.material.job(tp, ()), tasks=tuple(names), unlocked=False)
    outcome = run_to_end(session, job, log_dir=bench.folder / "logs", timeout=bench.options.timeout)
    if not outcome.ok:
        raise UsageError(f"a fault must leave outputs or a finding, but {outcome.message}.")
    for task, name in names.items():
        evidence = bench.evidence(task, tp, "float32", read_outputs(job, task))
        result = judge(evidence, bench.blank(task, tp, "float32"))
        remove_outputs(job, task)
        yield Sighting(
            fault=name,
            component=task.component,
            backend=backend,
            tp=tp,
            status=result.status.value,
            reason=result.reason,
            by=_by(result),
        )


def disappointments(found: Sequence[Sighting]) -> list[str]:
    """A sentence per fault that xla does not see, and per clean component that any backend rejects."""
    return [
        f"{s.component} on {s.backend} at tp {s.tp}: "
        + (f"the right code is rejected: {s.reason}" if s.fault == CLEAN else f"fault {s.fault} is not seen")
        for s in found
        if (s.seen if s.fault == CLEAN else s.backend == "xla" and not s.seen)
    ]


def sighting_table(found: Sequence[Sighting]) -> TextTable:
    """A row per fault, a column per backend: at which degrees it is seen, and by which check."""
    backends = tuple(dict.fromkeys(s.backend for s in found))
    rows = []
    for name, component in dict.fromkeys((s.fault, s.component) for s in found):
        own = [s for s in found if (s.fault, s.component) == (name, component)]
        cells = (_cell([s for s in own if s.backend == backend], name == CLEAN) for backend in backends)
        rows.append((name, component, *cells))
    headers = ("fault", "component", *backends)
    return TextTable(title="Faults of the compiled path", headers=headers, rows=tuple(rows), left=len(headers))


def _cell(own: Sequence[Sighting], clean: bool) -> str:
    seen = [s for s in own if s.seen]
    degrees = ", ".join(str(s.tp) for s in (seen or own))
    if not seen:
        return f"passes at tp {degrees}" if clean else f"not seen at tp {degrees}"
    by = " / ".join(dict.fromkeys(s.by for s in seen))
    blind = [str(s.tp) for s in own if not s.seen]
    return f"seen at tp {degrees}, by {by}" + (f"; not at tp {', '.join(blind)}" if blind else "")


def _by(result: Result) -> str:
    """What the reason of the result is about."""
    failed = [check.name for check in result.checks if not check.passed]
    failed += [result.gate.kind] if result.gate and not result.gate.passed else []
    return (failed or [*result.rejections, result.status.value])[0]


def page(found: Sequence[Sighting], command: str) -> str:
    """The page of docs/: the table, and each fault's finding at the last degree in the words of a run."""
    last = max(s.tp for s in found)
    compiled = [s for s in found if s.backend == "xla" and s.tp == last and s.fault != CLEAN]
    words = "\n\n".join(f"**{s.fault}**\n\n> {s.status}: {s.reason}" for s in compiled)
    return _PAGE.format(command=command, table=sighting_table(found).markdown(), last=last, words=words)


_PAGE = """# Faults of the compiled path

On Trn1 torch-xla traces the model into one program that all ranks share. These mistakes are made there. A process
(`gloo`) or a thread (`local`) per rank runs each rank's own Python and mostly gets the right numbers; `xla` compiles
and runs the shared program, on a CPU. Every cell was run: `{command}` writes this page.

{table}

What `xla` says of them at tp {last}, in float32:

{words}
"""
