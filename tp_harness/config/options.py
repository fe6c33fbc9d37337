"""The options of `verify`: as a user may give them, and resolved, with nothing left open. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UnknownNameError, UsageError
from ..models import SMALL, family_of, load_model
from .divisibility import check_degrees
from .dtypes import DTYPES, check_dtypes, dtypes_in_order

KERNEL_NAMES = ("torch", "nki")
INIT_NAMES = ("discriminating", "constant", "tied")
MAX_REPEATS = 1000
MODEL = "tiny"  # by default
OWN = ("case", 0)  # the target of an own Case, within the run of that Case alone
OF_MODEL = ("model", "model_name", "batch", "seq", "depth")  # fields of `Resolved` that have no effect on an own Case
_NOT_OF_A_CASE = {
    "components": "--component",
    "layers": "--layer",
    "depth": "--depth",
    "model": "--model",
    "batch": "--batch",
    "seq": "--seq",
}
AXES = ("ep", "cp")  # of a mesh, whose ranks an option gives
TIMEOUT = 300.0  # seconds
SECONDS_PER_WEIGHT = 1e-7  # per weight and forward, in all dtypes; 2e-8 measured with 32 ranks on two busy cores
TRN1_CORES = 32  # of one trn1.32xlarge
MAX_DEGREE = 256  # ranks on the CPUs of one machine


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user asked for; None and () leave the choice to `resolve`. `timeout` is in seconds, `seq` in tokens."""

    components: tuple[str, ...] = ()
    degrees: tuple[int, ...] = (1, 2, 8, 32)
    ep: int | None = None
    cp: int | None = None
    model: str | None = None
    batch: int | None = None
    seq: int | None = None
    layers: tuple[int, ...] = ()
    depth: int | None = None
    dtypes: tuple[str, ...] = ()
    backend: str = "auto"
    seed: int = 0
    draws: int | None = None
    init: str = "discriminating"
    kernels: str = "torch"
    repeats: int = 0
    fault: str = ""
    fault_control: bool = True
    checkpoint: Path | None = None
    case: str | Sequence[str] | None = None  # FILE.py or FILE.py:NAME, or several
    out: Path = Path("artifacts")
    timeout: float | None = None


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A run, fully decided. `targets` are (component, layer) in order; `case` is () for built-in components.

    `case` names own Cases as FILE.py:NAME, each with a target of the name and layer that its results have. Before their
    files are read, they may be FILE.py too, and `targets` is (OWN,). `model` is a whole model of a family; `depth` is
    the number of its layers that its whole component is run with, 0 for all.
    """

    targets: tuple[tuple[str, int], ...]
    degrees: tuple[int, ...]
    model_name: str = MODEL
    model: Any = field(default_factory=lambda: load_model(MODEL))
    batch: int = 2
    seq: int = 40
    dtypes: tuple[str, ...]
    seed: int
    draws: int
    init: str
    kernels: str
    checkpoint: str
    case: tuple[str, ...]
    out: str
    timeout: float
    repeats: int = 0
    fault: str = ""
    fault_control: bool = True
    depth: int = 0
    ep: int = 0  # ranks along an axis of the Cases' meshes, 0 where none were asked for
    cp: int = 0


def resolve(options: Options) -> Resolved:
    """Check every option and decide the open ones.

    A small model gets two rows, 40 tokens (longer than its window), two draws, both kinds of layer and exact
    arithmetic; a real one gets one row of 160 tokens, one draw, and both kinds of layer for attention alone.

    Raises:
        UsageError: an option has a wrong value, or contradicts another; one sentence with the next step.
    """
    case = case_specs(options.case)
    _check_case(options, case)
    model = load_model(options.model or MODEL)
    family, small = family_of(model), model.hidden_size <= SMALL
    components = options.components or family.run_by_default
    _check_choices("component", components, tuple(family.components))
    _check_choices("init", (options.init,), INIT_NAMES)
    _check_choices("kernels", (options.kernels,), KERNEL_NAMES)
    check_dtypes(options.dtypes, options.backend, options.kernels)
    _check_choices("dtype", options.dtypes, DTYPES)
    for name, value in (("--batch", options.batch), ("--seq", options.seq), ("--draws", options.draws)):
        if value is not None:
            check_range(name, value)
    if not 0 <= options.repeats <= MAX_REPEATS:
        raise UsageError(f"--repeats is {options.repeats}; a number between 0 and {MAX_REPEATS} is needed.")
    if options.timeout is not None and not 0 < options.timeout < float("inf"):
        raise UsageError(f"--timeout is {options.timeout:g}; a positive number of seconds is needed.")
    if not 0 <= options.seed < 2**31:
        raise UsageError(f"--seed is {options.seed}; it must be between 0 and 2147483647.")
    check_distinct_degrees(options.degrees)
    _check_axes(options, case)
    if options.checkpoint and options.init != INIT_NAMES[0]:
        raise UsageError(f"--init is {options.init}, but --checkpoint gives the weights; leave one of them out.")
    if case:
        targets: tuple[tuple[str, int], ...] = (OWN,)
    else:
        check_degrees(model, family.requirements, components, options.degrees)
        _check_layers(options, model)
        _check_depth(options, model, components)
        targets = tuple((name, layer) for name in components for layer in _layers(options, model, name))
    depth = options.depth or model.num_hidden_layers
    return Resolved(
        targets=targets,
        degrees=options.degrees,
        model_name=options.model or MODEL,
        model=model,
        batch=options.batch or (2 if small else 1),
        seq=options.seq or (40 if small else 160),
        dtypes=dtypes_in_order(options.dtypes, options.backend, options.kernels, small=small),
        seed=options.seed,
        draws=options.draws or (2 if small else 1),
        init=options.init,
        kernels=options.kernels,
        checkpoint=str(options.checkpoint or ""),
        case=case,
        out=str(options.out),
        timeout=options.timeout or _timeout(model, depth, targets, options.repeats),
        repeats=options.repeats,
        fault=options.fault,
        fault_control=options.fault_control,
        depth=0 if depth == model.num_hidden_layers else depth,
        ep=options.ep or 0,
        cp=options.cp or 0,
    )


def case_specs(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """What --case names, one or several, as a tuple."""
    return (given,) if isinstance(given, str) and given else tuple(given or ())


def case_file(spec: str) -> str:
    """The file FILE.py of FILE.py:NAME or FILE.py."""
    return spec if spec.endswith(".py") else spec.rpartition(":")[0]


def _check_case(options: Options, case: tuple[str, ...]) -> None:
    """Refuse options that have no effect on a Case."""
    given = [flag for name, flag in _NOT_OF_A_CASE.items() if getattr(options, name) not in (None, ())]
    if case and given:
        raise UsageError(
            f"a Case brings its own modules and inputs, which {' and '.join(given)} would not change; leave "
            f"{'it' if len(given) == 1 else 'them'} out beside --case."
        )


def _check_axes(options: Options, case: tuple[str, ...]) -> None:
    """Refuse ranks along an axis that no degree can have, or that nothing takes."""
    for axis in AXES:
        size = getattr(options, axis)
        if size is None:
            continue
        check_range(f"--{axis}", size)
        if not case:
            raise UsageError(
                f"--{axis} is {size}, which is for a Case whose mesh takes {axis}; add --case or leave it out."
            )
        if odd := [tp for tp in options.degrees if tp % size]:
            raise UsageError(
                f"--{axis} is {size}, and --tp holds {', '.join(map(str, odd))}; each degree must divide by it, as "
                f"--tp {size} does."
            )


def _layers(options: Options, model: Any, component: str) -> tuple[int, ...]:
    """The layers that --layer names, or those that the family says."""
    family = family_of(model)
    if component in family.layered and options.layers:
        return options.layers
    said = family.layers_of(component, small=model.hidden_size <= SMALL)
    return tuple(layer for layer in said if layer < model.num_hidden_layers)


def _check_depth(options: Options, model: Any, components: tuple[str, ...]) -> None:
    if options.depth is None:
        return
    if not 1 <= options.depth <= model.num_hidden_layers:
        raise UsageError(
            f"--depth is {options.depth}; a number between 1 and {model.num_hidden_layers} is needed, the layers of "
            f"{options.model or MODEL}."
        )
    family = family_of(model)
    whole = family.whole
    if not any(map(family.has_all_layers, components)):
        raise UsageError(f"--depth is {options.depth}, but only the {whole} has one; add --component {whole}.")


def _timeout(model: Any, depth: int, targets: tuple[tuple[str, int], ...], repeats: int) -> float:
    """Seconds for one case on the ranks; a transformer of 24 large layers takes minutes on few cores."""
    family = family_of(model)
    layers = depth if any(family.has_all_layers(name) for name, _ in targets) else 1
    weights = layers * family.layer_weights(model)
    forwards = 3 + repeats if repeats else 1
    return TIMEOUT + round(SECONDS_PER_WEIGHT * weights * forwards)


def _check_layers(options: Options, model: Any) -> None:
    for layer in options.layers:
        if not 0 <= layer < model.num_hidden_layers:
            raise UsageError(
                f"--layer is {layer}; {options.model or MODEL} has layers 0 to {model.num_hidden_layers - 1}."
            )
    if len(set(options.layers)) != len(options.layers):
        raise UsageError(f"--layer is {list(options.layers)}; distinct layers are needed.")


def check_range(name: str, value: int) -> None:
    """Refuse a size out of range.

    Raises:
        UsageError: `value` of option `name` is not between 1 and 2**20 - 1.
    """
    if not 0 < value < 2**20:
        raise UsageError(f"{name} is {value}; a number between 1 and {2**20 - 1} is needed.")


def parse_degrees(text: str) -> tuple[int, ...]:
    """The degrees, in ranks, of a text as given to --tp, `1,2,8,32`.

    Raises:
        UsageError: it is not a list of integers.
    """
    try:
        return tuple(int(tp) for tp in text.split(","))
    except ValueError:
        raise UsageError(f"--tp is {text!r}; numbers separated by commas are needed, as 1,2,8,32.") from None


def check_distinct_degrees(degrees: tuple[int, ...], most: int = MAX_DEGREE) -> None:
    """Check degrees, in ranks.

    Raises:
        UsageError: there is none, one is given twice, or one is not between 1 and `most`.
    """
    if not degrees or len(set(degrees)) != len(degrees):
        raise UsageError(f"--tp is {list(degrees)}; distinct degrees are needed, for example 1,2,8,32.")
    for tp in degrees:
        if not 1 <= tp <= most:
            where = "the NeuronCores of one trn1.32xlarge" if most == TRN1_CORES else "as ranks on CPUs"
            raise UsageError(f"--tp holds {tp}; a degree lies between 1 and {most}, {where}.")


def _check_choices(kind: str, given: tuple[str, ...], choices: tuple[str, ...]) -> None:
    for name in given:
        if name not in choices:
            raise UnknownNameError(kind, name, choices)
    if len(set(given)) != len(given):
        raise UsageError(f"a {kind} is named twice: {', '.join(given)}.")


def as_record(resolved: Resolved) -> dict[str, object]:
    """The resolved options as JSON values, for run.json; of an own Case without those that have no effect on it."""
    values = dataclasses.asdict(resolved)
    return {name: value for name, value in values.items() if not (resolved.case and name in OF_MODEL)}
