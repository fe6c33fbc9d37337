"""The types that pass from a rank to the judge: the names of its tensors, and its report on the runs behind them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, cast

from ..arithmetic.seen import Seen
from ..parallel.dtensors import Placed
from ..results.result import Collective, Forwards, Program, RankRecord

# With the oracle's routing, with the module's own, inside a module, and with other numbers in padding.
Variant = Literal["locked", "unlocked", "tap", "filled"]
NO_FORWARDS = Forwards(wall_s=(), cpu_s=())


def modulo(name: str, number: int) -> str:
    """The name of a tensor's residues modulo a prime, by its number.

    The p of all pairs come first; their q follow where taps are recorded.
    """
    return f"{name}%{number}"


@dataclass(frozen=True, order=True)
class TensorKey:
    """Which tensor of a rank: `output.0` of the locked run in float32, as text `float32.locked.output.0`."""

    dtype: str
    variant: Variant
    name: str

    def __str__(self) -> str:
        return f"{self.dtype}.{self.variant}.{self.name}"

    @staticmethod
    def parse(text: str) -> TensorKey:
        """The key that `str` wrote as `text`.

        Raises:
            ValueError: a text of fewer than three parts.
        """
        dtype, variant, name = text.split(".", 2)
        return TensorKey(dtype, cast("Variant", variant), name)

    def modulo(self, number: int) -> TensorKey:
        """The key of the tensor's residues modulo a prime, as `modulo` names them: `exact.locked.output.0%1`."""
        return replace(self, name=modulo(self.name, number))

    def filled(self, what: str) -> TensorKey:
        """The key of an output in the run in which the padding of `what` is filled: `float32.filled.output.0@up`."""
        return replace(self, variant="filled", name=f"{self.name}@{what}")


@dataclass(frozen=True, kw_only=True)
class Held:
    """What identifies the bits of a parameter or buffer that a rank holds.

    `view` is its place in the mapped checkpoint, the offset and then the strides in elements; a copy (None) has a
    `digest` instead. `placed` is the placement of a DTensor. `rebuilt` is False for a buffer into which the module had
    built other values than those that the checkpoint then gave it.
    """

    shape: tuple[int, ...]
    dtype: str
    bytes: int
    view: tuple[int, ...] | None = None
    digest: str = ""
    placed: Placed | None = None
    rebuilt: bool = True


@dataclass(frozen=True, kw_only=True)
class DtypeRun:
    """A task in one dtype on one rank; where the program was found wrong (`finding`) nothing ran."""

    parameters: dict[str, Held] = field(default_factory=dict)
    results: tuple[str, ...] = ()  # the names of what its calls returned and left, in order
    pairs: tuple[str, ...] = ()  # the keys, as text, of complex tensors, which are written as pairs of real numbers
    placed: dict[str, Placed] = field(default_factory=dict)  # DTensors among outputs and taps
    collectives: tuple[Collective, ...] = ()  # of the forward that is judged, in order
    unawaited: tuple[str, ...] = ()  # a sentence on each whose handle nobody waited for
    forwards: Forwards = NO_FORWARDS
    flops: int | None = None  # of one forward; None where they were not counted
    changed: tuple[str, ...] | None = None  # outputs that differ when the module is run again; None where it was not
    begin_bytes: int = 0  # resident when it began
    peak_bytes: int = 0  # and at most until it was done
    program: Program | None = None  # None where nothing is compiled
    finding: str = ""  # why the program must not or cannot run
    unlocked: tuple[str, ...] = ()  # routers that went on with another choice than the one they were locked to
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by tap, the tokens of a router that has a part
    seen: Seen | None = None  # of a run in exact arithmetic
    filled: tuple[str, ...] = ()  # parameters and inputs whose padding was filled in a run of its own


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """One task on one rank. `config_hash` is the sha256 of the job it read; seconds are those of the whole task."""

    rank: int
    core: str
    config_hash: str
    wall_s: float
    cpu_s: float
    runs: dict[str, DtypeRun]  # by dtype

    def record(self, dtype: str) -> RankRecord:
        """The rank's record of one dtype for run.json: seconds, bytes and floating-point operations."""
        run = self.runs[dtype]
        return RankRecord(
            rank=self.rank,
            core=self.core,
            wall_s=round(self.wall_s, 4),
            cpu_s=round(self.cpu_s, 4),
            peak_bytes=run.peak_bytes,
            weight_bytes=sum(held.bytes for held in run.parameters.values()),
            collectives=run.collectives,
            begin_bytes=run.begin_bytes,
            forwards=run.forwards,
            flops=run.flops,
        )
