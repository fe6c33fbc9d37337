"""The environment of one job on NeuronCores: a pure function, called before torch_xla can be imported. No torch.

The Neuron runtime reads its variables when it is first touched, and holds its cores until the process ends. So
whoever starts processes computes their environment here, and never edits it in a process that has imported
torch_xla.

Sources: AWS Neuron SDK documentation (runtime configuration, PyTorch environment variables), torch_xla 2.9
`_internal/neuron*.py`; docs/trn1.md lists what each variable guards against.

Not covered: several hosts; Trn2, which joins physical cores into logical ones.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..config.divisibility import TRN1_DEGREES
from ..errors import UsageError

TRN1_CORES = 32  # NeuronCores of a trn1.32xlarge: 16 chips of 2
BASE_PORT = 62182  # torch_xla's own port for the first message of a collective, shared by all jobs unless changed
EXEC_TIMEOUT = "600"  # seconds; the documented defaults contradict each other (2, 30 and 600)
_HIGHEST_PORT = 65535
_CORE = re.compile("[0-9]{1,4}")

# What another launcher or torch_xla's own spawn may have left: torchrun's ranks set these anew.
_OF_OTHER_LAUNCHERS = (
    "CPU_NUM_DEVICES",
    "NEURONCORE_NUM_DEVICES",
    "NEURON_PJRT_PROCESSES_NUM_DEVICES",
    "NEURON_PJRT_PROCESS_INDEX",
    "NEURON_PJRT_WORLD_SIZE",
    "NEURON_RT_NUM_CORES",
    "PJRT_LOCAL_PROCESS_COUNT",
    "PJRT_LOCAL_PROCESS_RANK",
)


@dataclass(frozen=True, kw_only=True)
class Danger:
    """A variable that changes what a run computes, so that its verdict would not be about the user's module."""

    name: str
    effect: str

    def sentence(self, value: str) -> str:
        """One sentence for the variable at `value`: both values, the effect and the next step."""
        return f"{self.name} is {value!r}, which {self.effect}; verification needs it off: `unset {self.name}`."


DANGERS = (
    Danger(name="XLA_USE_BF16", effect="turns every float32 tensor into bfloat16 behind the program's back"),
    Danger(name="XLA_DOWNCAST_BF16", effect="turns every float32 tensor into bfloat16 behind the program's back"),
    Danger(name="XLA_USE_FP16", effect="turns every float32 tensor into float16 behind the program's back"),
    Danger(name="XLA_DOWNCAST_FP16", effect="turns every float32 tensor into float16 behind the program's back"),
    Danger(name="NEURON_RT_STOCHASTIC_ROUNDING_EN", effect="rounds at random instead of to nearest"),
    Danger(name="NEURON_EXTRACT_GRAPHS_ONLY", effect="compiles graphs without running them: every output is zeros"),
)


def dangers(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that is set and must not be, --auto-cast in NEURON_CC_FLAGS included."""
    for danger in DANGERS:
        if is_on(environment.get(danger.name, "")):
            yield danger.sentence(environment[danger.name])
    try:
        auto_cast = _auto_cast(environment.get("NEURON_CC_FLAGS", ""))
    except UsageError as error:
        yield str(error)
        return
    if auto_cast not in (None, "none"):
        yield (
            f"NEURON_CC_FLAGS has --auto-cast={auto_cast}, which computes float32 in fewer bits; verification needs "
            f"--auto-cast=none: take it out of NEURON_CC_FLAGS."
        )


def is_on(value: str) -> bool:
    """Whether the value of a boolean variable switches it on: not empty, "0", "false", "no" or "off"."""
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def neuron_environment(
    user: Mapping[str, str],
    *,
    first_core: int,
    degree: int,
    base_port: int = BASE_PORT,
    cores: int = TRN1_CORES,
) -> dict[str, str]:
    """The whole environment of a job of `degree` processes, one per NeuronCore, from `first_core` on.

    torch_xla gives each of torchrun's processes its core out of NEURON_RT_VISIBLE_CORES. Given its own result for the
    same cores, the function returns it unchanged.

    Args:
        user: the environment the user started with; where it has NEURON_RT_VISIBLE_CORES, the job stays within
            them. PJRT_DEVICE=CPU is kept: the same processes without a device.
        first_core: a multiple of `degree`.
        degree: tp_degree and number of processes: 1, 2, 8 or 32.
        base_port: the job's NEURON_RT_ROOT_COMM_ID has the port `base_port + first_core`, so that jobs side by side
            never share one.
        cores: how many NeuronCores the instance has.

    Raises:
        UsageError: cores or a degree that Trn1 does not have, or a variable of the user's that contradicts a
            verification; one sentence with both values.
    """
    check_block(first_core, degree, cores)
    _check_visible(user, first_core, degree)
    _check_port(base_port + first_core)
    for sentence in dangers(user):
        raise UsageError(sentence)
    device = user.get("PJRT_DEVICE", "NEURON")
    if device not in ("NEURON", "CPU"):
        raise UsageError(f"PJRT_DEVICE is {device!r}; NEURON is needed, or CPU to try the same path without a device.")
    off = {danger.name for danger in DANGERS} | set(_OF_OTHER_LAUNCHERS)
    kept = {name: value for name, value in user.items() if name not in off}
    defaults = {"NEURON_RT_EXEC_TIMEOUT": EXEC_TIMEOUT, "MALLOC_ARENA_MAX": "64", "OMP_NUM_THREADS": "1"}
    return {
        **defaults,
        **kept,
        "PJRT_DEVICE": device,
        "NEURON_RT_VISIBLE_CORES": core_range(first_core, degree),
        "NEURON_RT_ROOT_COMM_ID": f"127.0.0.1:{base_port + first_core}",
        "NEURON_RT_STOCHASTIC_ROUNDING_EN": "0",
        "NEURON_CC_FLAGS": compiler_flags(user.get("NEURON_CC_FLAGS", "")),
    }


def check_block(first_core: int, degree: int, cores: int = TRN1_CORES, *, option: str = "--tp") -> None:
    """Refuse cores on which Trn1 cannot, or does not promise to, run a job; `option` is what the degree came from.

    Raises:
        UsageError: the degree, the start, or the end is wrong; the message says which would do.
    """
    if degree not in TRN1_DEGREES:
        raise UsageError(
            f"tp_degree {degree} is not one that AWS supports on Trn1: 1, 2, 8 and 32 NeuronCores are (4 and 16 may "
            "start on recent runtimes and nobody promises it; others end in 'Unsupported topology'). Choose with "
            f"{option}."
        )
    if degree > cores:
        raise UsageError(
            f"tp_degree {degree} needs {degree} NeuronCores; this machine has {cores}. Choose with {option}."
        )
    if first_core % degree or not 0 <= first_core <= cores - degree:
        raise UsageError(
            f"a job of tp_degree {degree} cannot start at NeuronCore {first_core}; on a machine of {cores} it starts "
            f"at a multiple of {degree}, at most {(cores - degree) // degree * degree}."
        )


def core_range(first_core: int, degree: int) -> str:
    """A block of cores as NEURON_RT_VISIBLE_CORES has it: "8-15", or "3" for one core."""
    return str(first_core) if degree == 1 else f"{first_core}-{first_core + degree - 1}"


def visible_cores(text: str) -> tuple[int, ...]:
    """The cores that a value of NEURON_RT_VISIBLE_CORES names, ascending: "0-3,8" is 0, 1, 2, 3, 8.

    Raises:
        UsageError: the text is no list of cores and ranges.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        numbers = [first, last] if dash else [first, first]
        if not all(_CORE.fullmatch(number) for number in numbers) or int(numbers[1]) < int(numbers[0]):
            raise UsageError(f"NEURON_RT_VISIBLE_CORES is {text!r}; cores and ranges are needed, such as 0-7 or 0,1.")
        found |= set(range(int(numbers[0]), int(numbers[1]) + 1))
    return tuple(sorted(found))


def compiler_flags(user: str) -> str:
    """The user's NEURON_CC_FLAGS with --auto-cast=none and a --model-type, where they lack one.

    Raises:
        UsageError: quotes that do not close.
    """
    words = _words(user)
    added = [] if _auto_cast(user) else ["--auto-cast=none"]
    if not any(word.partition("=")[0] == "--model-type" for word in words):
        added.append("--model-type=transformer")
    return " ".join([*([user.strip()] if words else []), *added])


def _auto_cast(flags: str) -> str | None:
    """The value of --auto-cast in compiler flags; of several, the first that is not "none"."""
    words = _words(flags)
    values = [word.partition("=")[2] for word in words if word.startswith("--auto-cast=")]
    values += [[*words, ""][i + 1] for i, word in enumerate(words) if word == "--auto-cast"]
    return next((value for value in values if value != "none"), values[0] if values else None)


def _words(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise UsageError(f"NEURON_CC_FLAGS is {flags!r}: {str(error).lower()}; close the quotation.") from None


def _check_visible(user: Mapping[str, str], first_core: int, degree: int) -> None:
    given = user.get("NEURON_RT_VISIBLE_CORES", "").strip()
    if given and not set(range(first_core, first_core + degree)) <= set(visible_cores(given)):
        raise UsageError(
            f"cores {core_range(first_core, degree)} are asked for, but NEURON_RT_VISIBLE_CORES is {given!r}: "
            "choose cores within it, or unset it."
        )


def _check_port(port: int) -> None:
    if not 1024 <= port <= _HIGHEST_PORT:
        raise UsageError(f"NEURON_RT_ROOT_COMM_ID would have port {port}; one from 1024 to {_HIGHEST_PORT} is needed.")
