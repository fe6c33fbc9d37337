"""What a run found: the types of run.json (schema 1), frozen, made of JSON values and free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .collective import Collective as Collective  # noqa: PLC0414 (a type of run.json like those below)
from .gate import Gate as Gate  # noqa: PLC0414
from .mistake import Cause as Cause  # noqa: PLC0414
from .mistake import Divergence as Divergence  # noqa: PLC0414
from .mistake import Mistake as Mistake  # noqa: PLC0414
from .proof import Proof as Proof  # noqa: PLC0414
from .status import Status as Status  # noqa: PLC0414
from .status import exit_code as exit_code  # noqa: PLC0414

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ProgramCollective:
    """One collective of a compiled program: `shape` and `bytes` are those of a rank's input."""

    kind: str
    groups: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    def __str__(self) -> str:
        spans = ((group, tuple(range(group[0], group[-1] + 1))) for group in self.groups)
        groups = ", ".join(f"{group[0]}-{group[-1]}" if group == span else str(list(group)) for group, span in spans)
        return f"{self.kind} {list(self.shape)} {self.dtype} in groups {groups}"


@dataclass(frozen=True, kw_only=True)
class Program:
    """The compiled program that all ranks ran.

    `compiles` counts its compilations over all ranks and draws; `fallbacks` are operations that ran on the host
    instead (torch-xla's aten:: counters).
    """

    fingerprint: str
    compiles: int
    collectives: tuple[ProgramCollective, ...]
    fallbacks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a tensor is from the oracle: relative L2 over all, and of the worst token."""

    rel_l2: float
    token: float
    token_index: int
    elements: int = 0  # compared; 0 where not known


@dataclass(frozen=True, kw_only=True)
class Check:
    """An exact check, without tolerance. `detail` says what was compared, or what differs."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The element farthest from the oracle, and the rank that produced it."""

    tensor: str
    index: tuple[int, ...]
    rank: int
    actual: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A token whose top-k choice differs from the oracle's; `margin` is the gap between the oracle's logits."""

    layer: str
    token: int
    margin: float
    limit: float
    chosen: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Timed forwards of one rank in one dtype, one entry each, in seconds.

    With `warm` False there is one entry, the first forward, which was judged; with True that was the warm-up, and the
    entries are the forwards after it. `collective_s` is the part of `wall_s` inside collectives, waiting for other
    ranks included. A field is empty where it was not measured or has no meaning.
    """

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    collective_s: tuple[float, ...] = ()
    warm: bool = False


@dataclass(frozen=True, kw_only=True)
class RankRecord:
    """What one rank did. `wall_s` and `cpu_s` are seconds of the whole task: building, loading, every dtype.

    `begin_bytes` is the resident memory of its process when this dtype began, `peak_bytes` its maximum until the dtype
    was done, both with shared pages. `flops` are floating-point operations of one forward (None: not counted).
    """

    rank: int
    core: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    weight_bytes: int
    collectives: tuple[Collective, ...]
    begin_bytes: int = 0
    forwards: Forwards | None = None
    flops: int | None = None


@dataclass(frozen=True, kw_only=True)
class Control:
    """A fault put in at degree `tp`, on the first `tokens` of each row (0: all), which had to be rejected."""

    tp: int
    fault: str
    component: str
    layer: int
    dtype: str
    seed: int
    rejected: bool
    reason: str
    tokens: int = 0
    place: str = ""  # where, if the fault can be put in anywhere: "up.weight of rank 3"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One component at one degree, dtype and layer; the worst of its draws.

    `gates` and `checks` hold everything that was judged, `gate` the one nearest to (or over) its limit.
    """

    component: str
    tp: int
    backend: str
    dtype: str
    layer: int
    draws: int
    seed: int
    status: Status
    reason: str
    gate: Gate | None = None
    gates: tuple[Gate, ...] = ()
    checks: tuple[Check, ...] = ()
    worst: Worst | None = None
    flips: tuple[Flip, ...] = ()
    unlocked: str = ""
    notes: tuple[str, ...] = ()
    ranks: tuple[RankRecord, ...] = ()
    program: Program | None = None
    log_dir: str = ""
    error: str = ""  # what its rank raised, where one did: "ValueError: no"
    traceback: str = ""
    first_divergence: Divergence | None = None
    diagnosis: tuple[Cause, ...] = ()
    fault: str = ""  # name of the fault that was put in, "" for none
    hypotheses: int = 0  # known mistakes that were tried on the first divergence
    extent: str = ""  # what of the model the component was run with, "" for all: "2 of 24 layers"
    alternatives: tuple[Cause, ...] = ()  # others that reproduce the numbers, and say less of them
    refuted: tuple[str, ...] = ()  # names of known mistakes that would act here, and give other numbers
    as_float32: tuple[Cause, ...] = ()  # what float32 found at the same degree, where this dtype found none
    alike: tuple[Mistake, ...] = ()  # as a Mistake's, of the first divergence
    further: tuple[Mistake, ...] = ()  # in order: wrong although the first divergence, and all before, was put right
    put_right: str = ""  # a sentence: what the outputs are with all mistakes put right; "" where that was not tried
    proof: Proof | None = None  # of dtype "exact" alone
    mesh: dict[str, int] = field(default_factory=dict)  # axis -> its ranks, of a Case that has a mesh

    @property
    def never_ran(self) -> bool:
        """True when a compiled program was found wrong before it ran, so that there are no outputs."""
        return not self.gates and any(check.name == "program" and not check.passed for check in self.checks)

    @property
    def rejections(self) -> dict[str, str]:
        """What rejects the result: name -> kind.

        A status that is decided before any check (MISSING, SHAPE, NONFINITE), or else each failed check and gate.
        """
        if self.status in (Status.MISSING, Status.SHAPE, Status.NONFINITE):
            return {self.status.value.lower(): self.status.value.lower()}
        failed = {check.name: check.name for check in self.checks if not check.passed}
        failed |= {gate.metric: gate.kind for gate in self.gates if not gate.passed}
        wide = any(not flip.margin <= flip.limit for flip in self.flips)
        return failed | ({"router choice": "router choice"} if wide else {})

    @property
    def title(self) -> str:
        """`attention layer 1 tp 8 float32`, the way messages name a result; with a mesh, `tp 8 (ep 4 x tp 2)`."""
        axes = f" ({self.axes})" if self.axes else ""
        return f"{self.label} layer {self.layer} tp {self.tp}{axes} {self.dtype}"

    @property
    def axes(self) -> str:
        """The axes of a mesh of several, and their ranks: `ep 4 x tp 2`; "" of any other."""
        return " x ".join(f"{axis} {size}" for axis, size in self.mesh.items()) if len(self.mesh) > 1 else ""

    @property
    def label(self) -> str:
        """The component as tables name it: `attention`, or `transformer (2 of 24 layers)`."""
        return f"{self.component} ({self.extent})" if self.extent else self.component


def to_json(value: Any) -> Any:
    """The JSON form of any type of this module; NaN and infinities become strings (JSON has none)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not abs(value) < float("inf") else value
