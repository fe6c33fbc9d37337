"""`tp_harness.verify`: the command's work, from Python."""

from __future__ import annotations

from .backends import choose_backend
from .options import Options, as_record, resolve
from .record import RunRecord, open_record
from .run import verify as run


def verify(options: Options | None = None) -> RunRecord:
    """Verify as `tp-harness verify` does, printing nothing.

    Args:
        options: what to verify; the defaults are the command's.

    Returns:
        The record, whose `results`, `exit_code` and `path` (of run.json) say what was found.

    Raises:
        UsageError: an option, plan, case or checkpoint that cannot be.
    """
    options = options or Options()
    resolved, backend = resolve(options), choose_backend(options.backend)
    record = open_record(
        options.out,
        command="tp_harness.verify",
        options=as_record(resolved),
        backend=backend.name,
        blind_spots=backend.blind_spots,
    )
    run(resolved, backend, record, lambda _step: None)
    return record
