"""Fits the model's constants to the published rows, and says how far each row is off.

The same work and the same terms serve here and for the models that are verified. The fitted values stand in
constants.py; a test holds them equal to what this gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from .collectives import Collectives, latency
from .constants import CORE_FLOPS
from .published import MODELS, ROWS, TP, PublishedRow
from .roofline import Terms, terms
from .work import STORAGES, Place, Step, Work, decode, prefill, transformer

REDUCE_BYTES = 2  # the published rows ran in 16 bits


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """A published row beside the model's milliseconds; `left_out_ms` is fitted without any row of the same model."""

    row: PublishedRow
    measured_ms: float
    model_ms: float
    left_out_ms: float | None = None

    @property
    def error(self) -> float:
        """Relative error, model / measured - 1, as a fraction."""
        return self.model_ms / self.measured_ms - 1

    @property
    def left_out_error(self) -> float | None:
        """Relative error, as a fraction, of the fit without this model's rows; None where no such fit was made."""
        return None if self.left_out_ms is None else self.left_out_ms / self.measured_ms - 1


def fit_decode(rows: Sequence[PublishedRow] = ROWS) -> tuple[float, float, float]:
    """Fit the published times per token: least squares on relative errors.

    Returns:
        HBM bytes/s for weights, HBM bytes/s for the cache, both per core, and seconds per reduction.
    """
    works = [_work(row, _decode_step(row)) for row in rows]
    columns = [[_streamed(work), work.cache_bytes, len(work.messages)] for work in works]
    measured = [row.tpot_ms * 1e-3 for row in rows]
    weights, cache, boundary = _least_squares(columns, measured, [_compute_and_payload(work) for work in works])
    return 1 / weights, 1 / cache, boundary


def fit_prefill(rows: Sequence[PublishedRow] = ROWS) -> tuple[float, float]:
    """Fit the published times to the first token, with the constants of `fit_decode` fixed.

    Returns:
        Compute efficiency as a fraction of the peak, and seconds per attention score and core.
    """
    works = [_work(row, prefill(1, row.prompt)) for row in rows]
    columns = [[work.flops / CORE_FLOPS.value, work.scores] for work in works]
    measured = [row.ttft_ms * 1e-3 for row in rows]
    inverse, score = _least_squares(columns, measured, [_streaming_and_link(work) for work in works])
    return 1 / inverse, score


def prefill_with_start() -> tuple[float, list[float]]:
    """Fit a constant time per prompt too: its seconds, and each row's relative error with it."""
    works = [_work(row, prefill(1, row.prompt)) for row in ROWS]
    columns = [[work.flops / CORE_FLOPS.value, work.scores, 1.0] for work in works]
    measured, known = [row.ttft_ms * 1e-3 for row in ROWS], [_streaming_and_link(work) for work in works]
    fitted = _least_squares(columns, measured, known)
    times = [sum(x * f for x, f in zip(row, fitted, strict=True)) for row in columns]
    errors = [(time + k) / m - 1 for time, k, m in zip(times, known, measured, strict=True)]
    return fitted[2], errors


def decode_fit() -> tuple[FitRow, ...]:
    """Every published row with the model's time per token, in milliseconds."""
    return tuple(
        FitRow(
            row=row,
            measured_ms=row.tpot_ms,
            model_ms=1e3 * _terms(row, _decode_step(row)).seconds,
            left_out_ms=_left_out(row),
        )
        for row in ROWS
    )


def prefill_fit() -> tuple[FitRow, ...]:
    """Every published row with the model's time to the first token, in milliseconds."""
    return tuple(
        FitRow(row=row, measured_ms=row.ttft_ms, model_ms=1e3 * _terms(row, prefill(1, row.prompt)).seconds)
        for row in ROWS
    )


def _left_out(row: PublishedRow) -> float:
    """The row's time per token in ms, from a fit to the rows of all other models."""
    weights, cache, boundary = fit_decode([other for other in ROWS if other.model != row.model])
    work = _work(row, _decode_step(row))
    fitted = _streamed(work) / weights + work.cache_bytes / cache + len(work.messages) * boundary
    return 1e3 * (fitted + _compute_and_payload(work))


def _decode_step(row: PublishedRow) -> Step:
    """The whole cache is read: Transformers NeuronX compiles for the longest sequence."""
    return decode(1, row.seq)


@cache
def _work(row: PublishedRow, step: Step) -> Work:
    storage = STORAGES[row.weights]
    return transformer(Place(config=MODELS[row.model], tp=TP, step=step, storage=storage, reduce_bytes=REDUCE_BYTES))


def _terms(row: PublishedRow, step: Step) -> Terms:
    return terms(_work(row, step), Collectives())


def _streamed(work: Work) -> float:
    return work.read_bytes + work.activation_bytes


def _compute_and_payload(work: Work) -> float:
    """Seconds of a decode step that fit_decode does not fit: about 1 %."""
    times = terms(work, Collectives())
    return times.compute_s + times.link_s - len(work.messages) * latency(TP)


def _streaming_and_link(work: Work) -> float:
    """Seconds of a prefill that fit_prefill does not fit."""
    return terms(replace(work, flops=0.0, scores=0.0), Collectives()).seconds


def _least_squares(columns: list[list[float]], measured: list[float], known: list[float]) -> tuple[float, ...]:
    """Coefficients with the least squared relative errors of `columns` times coefficients plus `known`, in seconds."""
    import numpy as np  # noqa: PLC0415  (only calibration needs it)

    unit = np.array(measured)
    solution = np.linalg.lstsq(np.array(columns) / unit[:, None], 1 - np.array(known) / unit, rcond=None)[0]
    return tuple(float(x) for x in solution)
