"""The names of a run's tensors: `output.0`, `output.past.3.key`, `state.cache`; of a named call, `prefill/output.0`.

No torch: reports use them too.
"""

from __future__ import annotations

INPUT, OUTPUT, STATE = "input.", "output.", "state."
BEGIN = "begin"  # counts as a call, before the first: what the module's state was made as
_OF_CALL = "/"


def of_call(call: str, name: str) -> str:
    """The name of a tensor of a call; the only call of a run, "", adds nothing."""
    return f"{call}{_OF_CALL}{name}" if call else name


def call_of(name: str) -> str:
    """The call of a tensor; "" where the run has one without a name."""
    return name.rpartition(_OF_CALL)[0]


def without_call(name: str) -> str:
    """The name of a tensor within its call."""
    return name.rpartition(_OF_CALL)[2]


def is_result(name: str) -> bool:
    """Whether it is what a call returned or left as the module's state, and no tap."""
    return without_call(name).startswith((OUTPUT, STATE))


def is_state(name: str) -> bool:
    """Whether it is what a call left as the module's state."""
    return without_call(name).startswith(STATE)


def said(name: str) -> str:
    """The name of an input or output in a sentence: `input 0`, `output past.3.key of prefill`."""
    kind, _, path = without_call(name).partition(".")
    of = f" of {call}" if (call := call_of(name)) else ""
    return f"{kind} {path}{of}"
