"""How a result ended, what counts as a pass, and the exit code of a run. No torch."""

from __future__ import annotations

from enum import Enum


class Status(str, Enum):
    """How one result ended.

    PROVED is a pass in exact arithmetic, NOT PROVED and UNDECIDED are neither passed nor failed, DIFFERENT is another
    function by exact arithmetic, and FAILED an assertion of a test's own.
    """

    PASS = "PASS"
    PROVED = "PROVED"
    NOT_PROVED = "NOT PROVED"
    UNDECIDED = "UNDECIDED"
    MISMATCH = "MISMATCH"
    DIFFERENT = "DIFFERENT"
    SHAPE = "SHAPE"
    NONFINITE = "NONFINITE"
    MISSING = "MISSING"
    CRASH = "CRASH"
    TIMEOUT = "TIMEOUT"
    VOID = "VOID"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"

    @property
    def passed(self) -> bool:
        """Whether it is a pass."""
        return self in (Status.PASS, Status.PROVED)

    @property
    def is_open(self) -> bool:
        """Whether it ran, and neither passed nor failed."""
        return self in (Status.NOT_PROVED, Status.UNDECIDED)

    @property
    def failed(self) -> bool:
        """Whether it is neither a pass nor open; what was not run counts as failed."""
        return not (self.passed or self.is_open)

    @property
    def is_incomplete(self) -> bool:
        """Whether the ranks did not leave what they were to leave."""
        return self in (Status.CRASH, Status.TIMEOUT, Status.MISSING)

    @property
    def badness(self) -> int:
        """0 for a pass, 1 where it is open or was not run, and more the earlier an exit code counts."""
        groups = [group for _code, group in reversed(_EXIT_CODES)]
        of_group = next((2 + at for at, group in enumerate(groups) if self in group), 1)
        return 0 if self.passed else of_group


# Exit code -> its statuses, the first that occurs counts: an incomplete run (3), a mismatch (1), a void run (4).
_EXIT_CODES = (
    (3, {Status.CRASH, Status.TIMEOUT, Status.MISSING}),
    (1, {Status.FAILED, Status.MISMATCH, Status.DIFFERENT, Status.SHAPE, Status.NONFINITE}),
    (4, {Status.VOID}),
)


def exit_code(statuses: list[Status]) -> int:
    """The process's exit code: 0 passed, 1 mismatch, 3 a rank crashed, hung or went missing, 4 void or none passed."""
    failed = next((code for code, group in _EXIT_CODES if group & set(statuses)), None)
    return (0 if any(status.passed for status in statuses) else 4) if failed is None else failed
