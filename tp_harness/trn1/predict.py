"""The model's tables for one model: per component, memory per core, and per token. Rows of plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..models import family_of
from .collectives import Collectives
from .constants import CORE_BYTES, CORES, PRICE
from .roofline import terms
from .work import BF16, MXFP4, Decoder, Place, Step, Storage, attention, cache_bytes, decode, prefill, transformer

SCORE_TENSORS = 2  # unfused attention holds the scores and their softmax


@dataclass(frozen=True, kw_only=True)
class ComponentRow:
    """One component (layer 0) in one step at one degree; per rank, in floating-point operations, bytes and seconds.

    `flops_ratio` and `weights_ratio` are the sum over all ranks divided by degree 1's value: what exceeds 1 is computed
    or held more than once.
    """

    component: str
    phase: str
    tp: int
    flops: float
    weight_bytes: float
    message_bytes: float
    compute_s: float
    hbm_s: float
    link_s: float
    bound: str
    flops_ratio: float
    weights_ratio: float

    @property
    def seconds(self) -> float:
        """Seconds in compute, HBM and NeuronLink, added (see roofline.py)."""
        return self.compute_s + self.hbm_s + self.link_s


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Bytes on each core: weights, those of them beyond an even share (`replicated`), cache, and workspace.

    The workspace is that of the largest activations, the scores of one row's prefill.
    """

    storage: str
    tp: int
    weight_bytes: float
    replicated_bytes: float
    cache_bytes: float
    workspace_bytes: float

    @property
    def total_bytes(self) -> float:
        """Bytes of weights, cache and workspace."""
        return self.weight_bytes + self.cache_bytes + self.workspace_bytes

    @property
    def fits(self) -> bool:
        """Whether the total is within the core's HBM."""
        return self.total_bytes <= CORE_BYTES.value


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """Seconds to the first token and per further token, and the price of a million output tokens in USD.

    The `high` values count the fitted cost per reduction in full at every degree. The price fills the instance with
    as many replicas as there are groups of `tp` cores, all busy; it is None where the model does not fit.
    """

    storage: str
    tp: int
    fits: bool
    first_token_s: float
    token_s: float
    token_high_s: float
    replicas: int
    dollars_per_million: float | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """All tables of one model by one plan, for `batch` rows of `seq` tokens; the price in USD."""

    model: str
    batch: int
    seq: int
    plan: str
    price_per_hour: float
    measured_collectives: tuple[str, ...]
    components: tuple[ComponentRow, ...]
    memory: tuple[MemoryRow, ...]
    tokens: tuple[TokenRow, ...]
    notes: tuple[str, ...]


def predict(
    config: Decoder,
    *,
    name: str,
    degrees: Sequence[int] = (1, 2, 8, 32),
    batch: int = 1,
    seq: int = 1024,
    plan: str = "tp",
    collectives: Collectives | None = None,
    price_per_hour: float = PRICE.value,
) -> Prediction:
    """Model `config` at these degrees.

    Args:
        config: the dimensions of the model.
        name: of the model, for the tables.
        degrees: numbers of ranks.
        batch: rows.
        seq: tokens in the prompt of the prefill, and in the cache of the decode step.
        plan: how the model is shared out over ranks, a name of config.model.PLANS.
        collectives: measured times; None takes the published samples.
        price_per_hour: USD for a trn1.32xlarge.
    """
    collectives = collectives or Collectives()
    steps = {"prefill": prefill(batch, seq), "decode": decode(batch, seq)}
    memory = tuple(_memory(Place(config=config, tp=tp, step=steps["prefill"], storage=storage, plan=plan))
                   for storage in (BF16, MXFP4) for tp in degrees)  # fmt: skip
    return Prediction(
        model=name,
        batch=batch,
        seq=seq,
        plan=plan,
        price_per_hour=price_per_hour,
        measured_collectives=tuple(f"{t.kind} over {t.ranks} ranks: {t.source}" for t in collectives.measured),
        components=tuple(
            _component(component, phase, Place(config=config, tp=tp, step=step, plan=plan), collectives)
            for phase, step in steps.items()
            for component in family_of(config).work
            for tp in degrees
        ),
        memory=memory,
        tokens=tuple(
            _token(config, row, steps, plan=plan, collectives=collectives, price_per_hour=price_per_hour)
            for row in memory
        ),
        notes=(*_notes(config, tuple(degrees)), *_mixed(collectives, degrees)),
    )


def _notes(config: Decoder, degrees: tuple[int, ...]) -> tuple[str, ...]:
    """The assumptions of the tables on this model."""
    notes = ["mxfp4: packed weights are read and unpacked for nothing; NeuronCore-v2 has no 4-bit operands"]
    kv_heads = config.num_key_value_heads
    packed = family_of(config).weight_notes(config, degrees)
    notes += [f"{note}, or pad it to whole blocks, as is modelled here" for note in packed]
    copied = [tp for tp in degrees if tp > kv_heads]
    if copied:
        notes.append(f"{kv_heads} KV heads cannot be cut for tp {', '.join(map(str, copied))}: ranks hold copies")
    notes.append("router, norms and biases behind a reduction are whole on every rank")
    return tuple(notes)


def _mixed(collectives: Collectives, degrees: Sequence[int]) -> tuple[str, ...]:
    """A warning when some degrees have measured reductions and others have not."""
    measured = {table.ranks for table in collectives.measured if table.kind == "all_reduce"}
    without = [str(tp) for tp in degrees if tp > 1 and tp not in measured]
    if not collectives.measured or not without:
        return ()
    return (f"no all-reduce was measured over {', '.join(without)} ranks: there the published samples, upper bounds, "
            "stand beside measured times; give a report for each degree before comparing degrees",)  # fmt: skip


def _component(component: str, phase: str, place: Place, collectives: Collectives) -> ComponentRow:
    work, alone = (family_of(p.config).work[component](p, 0) for p in (place, _at_degree_1(place)))
    time = terms(work, collectives)
    return ComponentRow(
        component=component,
        phase=phase,
        tp=place.tp,
        flops=work.flops,
        weight_bytes=work.weight_bytes,
        message_bytes=sum(message.bytes for message in work.messages),
        compute_s=time.compute_s,
        hbm_s=time.hbm_s,
        link_s=time.link_s,
        bound=time.bound,
        flops_ratio=_ratio(place.tp * work.flops, alone.flops),
        weights_ratio=_ratio(place.tp * work.weight_bytes, alone.weight_bytes),
    )


def _memory(place: Place) -> MemoryRow:
    weights, alone = (transformer(p).weight_bytes for p in (place, _at_degree_1(place)))
    scores = attention(place, 0).scores / place.step.batch
    return MemoryRow(
        storage=place.storage.name,
        tp=place.tp,
        weight_bytes=weights,
        replicated_bytes=weights - alone / place.tp,
        cache_bytes=cache_bytes(place),
        workspace_bytes=SCORE_TENSORS * scores * 2,  # bfloat16
    )


def _token(
    config: Decoder,
    row: MemoryRow,
    steps: dict[str, Step],
    *,
    plan: str,
    collectives: Collectives,
    price_per_hour: float,
) -> TokenRow:
    storage: Storage = {s.name: s for s in (BF16, MXFP4)}[row.storage]
    first, token = (
        terms(transformer(Place(config=config, tp=row.tp, step=step, storage=storage, plan=plan)), collectives)
        for step in (steps["prefill"], steps["decode"])
    )  # fmt: skip
    replicas = int(CORES.value) // row.tp
    per_second = replicas * steps["decode"].batch / token.seconds
    return TokenRow(
        storage=row.storage,
        tp=row.tp,
        fits=row.fits,
        first_token_s=first.seconds,
        token_s=token.seconds,
        token_high_s=token.seconds_high,
        replicas=replicas,
        dollars_per_million=price_per_hour / 3600 / per_second * 1e6 if row.fits else None,
    )


def _at_degree_1(place: Place) -> Place:
    return Place(config=place.config, tp=1, step=place.step, storage=place.storage)


def _ratio(total: float, alone: float) -> float:
    """`total` over `alone`; 1 where there is nothing."""
    return total / alone if alone else 1.0
