"""`tp_harness.verify`: the command's work, from Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..backends import Backend, choose_backend
from ..case.case_file import imported_anew
from ..config.dtypes import dtypes_on
from ..config.options import Options, Resolved, as_record, resolve
from ..errors import UsageError, failures_of_storage
from ..prepare.material import Progress
from ..results.resume import inputs_of
from ..results.run_record import RunRecord, open_record
from ..system.environment import Changes, changed_here
from .degrees import verify as run


def verify(options: Options | None = None, *, env: Changes | None = None) -> RunRecord:
    """Verify as `tp-harness verify` does, printing nothing.

    The reference and all ranks have this process's environment as it is now. A case's file and its neighbours are
    imported anew for each call, so that they read it again; a library that is loaded already does not.

    Args:
        options: what to verify; the defaults are the command's.
        env: changes to the environment for this call: name -> text, or None to remove a variable.

    Returns:
        The record: `results`, one for each target, degree and dtype; `exit_code`, 0 only if all passed; and `path`
        of run.json. A mismatch or a crash is a result and raises nothing.

    Raises:
        UsageError: an option, plan, case, checkpoint or variable that cannot be.
    """
    options = options or Options()
    with changed_here(env), imported_anew(_specs(options)):
        return recorded(resolve(options), choose_backend(options.backend), "tp_harness.verify")


def _specs(options: Options) -> tuple[str, ...]:
    case = options.case or ()
    return (case,) if isinstance(case, str) else tuple(case)


def recorded(
    options: Resolved,
    backend: Backend,
    command: str,
    progress: Progress = lambda _step: None,
    *,
    record: RunRecord | None = None,
) -> RunRecord:
    """Verify into a folder of the run's own, and give back what was recorded.

    Args:
        options: what to verify.
        backend: where the ranks run.
        command: what was called, as the record shall say it.
        progress: is told each step.
        record: what to go on with; None opens a new one.

    Raises:
        UsageError: what was found wrong before any rank started; an empty folder is removed again.
    """
    options = replace(options, dtypes=dtypes_on(options.dtypes, backend.name, options.kernels))
    record = record or open_record(
        Path(options.out),
        command=command,
        options=as_record(options),
        backend=backend.name,
        blind_spots=backend.blind_spots,
        inputs=inputs_of(options),
    )
    try:
        with failures_of_storage():
            run(options, backend, record, progress)
    except UsageError:
        record.discard_if_empty()
        raise
    finally:
        record.release()
    return record
