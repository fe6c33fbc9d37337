"""The dtypes of a run: which there are, which are run by default, and where each of them can be run. No torch."""

from __future__ import annotations

from ..errors import UnknownNameError, UsageError

EXACT = "exact"
DTYPES = (EXACT, "float64", "float32", "bfloat16", "float16")  # a run has them in this order
FLOATS = ("float32", "bfloat16")
DEFAULT_DTYPES = (EXACT, *FLOATS)
_BY_DEFAULT = f"{', '.join(DEFAULT_DTYPES)} (exact for small models)"
HELP = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}; repeatable; default: {_BY_DEFAULT}"
SIXTEEN_BITS = ("bfloat16", "float16")
OTHERS = ("fp64", "double", "fp16", "half", "float8", "fp8")  # are no mistyped names
COMPILED = ("xla", "neuron")  # backends whose ranks compile what they run


def check_dtypes(given: tuple[str, ...], backend: str, kernels: str) -> None:
    """Check the dtypes that were asked for by name.

    Raises:
        UsageError: there are no limits for one of them, its name is unknown, or it cannot be run by this backend, or
            with these kernels; says what to choose.
    """
    for name in given:
        if name in OTHERS or name.startswith(("float8_", "int", "uint")):
            known = f"{', '.join(DTYPES[:-1])} and {DTYPES[-1]}"
            raise UsageError(f"--dtype is {name!r}; there are limits for {known} alone: choose among them.")
        if name not in DTYPES:
            raise UnknownNameError("dtype", name, DTYPES)
        if obstacle := _obstacle(name, backend, kernels):
            raise UsageError(f"--dtype is {name}, but {obstacle}, or leave {name} out.")


def dtypes_in_order(given: tuple[str, ...], backend: str, kernels: str, *, small: bool = True) -> tuple[str, ...]:
    """The dtypes of a run: those that were asked for; by default, those that the backend can run with these kernels.

    Of a model that is not `small`, exact arithmetic takes many times the time of the others, and is asked for by name.
    """
    default = DEFAULT_DTYPES if small else FLOATS
    chosen = given or tuple(name for name in default if not _obstacle(name, backend, kernels))
    return tuple(sorted(chosen, key=DTYPES.index))


def dtypes_on(chosen: tuple[str, ...], backend: str, kernels: str) -> tuple[str, ...]:
    """Those of the dtypes of a run that its backend, which was chosen automatically, can run.

    Raises:
        UsageError: there is none; says what to choose.
    """
    left = tuple(name for name in chosen if not _obstacle(name, backend, kernels))
    if not left:
        raise UsageError(f"--dtype is {chosen[0]}, but {_obstacle(chosen[0], backend, kernels)}.")
    return left


def draws_in(dtype: str, dtypes: tuple[str, ...], draws: int) -> int:
    """How many of the draws of a run a dtype takes: exact arithmetic, beside others, the first alone.

    One point is a proof on its branches, and the other dtypes look at the branches of the others.
    """
    return 1 if dtype == EXACT and len(dtypes) > 1 else draws


def _obstacle(dtype: str, backend: str, kernels: str) -> str:
    """Why a dtype cannot be run by a backend with these kernels, and what to choose; "" where it can."""
    if dtype == EXACT and backend in COMPILED:
        return f"--backend is {backend}: exact arithmetic runs eager code on the CPU; choose --backend gloo or local"
    if dtype == EXACT and kernels == "nki":
        return "--kernels is nki: exact arithmetic runs eager code on the CPU; choose --kernels torch"
    if dtype == "float64" and backend == "neuron":
        return "--backend is neuron: a NeuronCore does not compute in float64; choose --backend gloo or local"
    if dtype == "float64" and kernels == "nki":
        return "--kernels is nki: no kernel computes in float64; choose --kernels torch"
    return ""
