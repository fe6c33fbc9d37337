"""The model's tables as cells of text, for a terminal and for Markdown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..text_table import TextTable
from . import MODELLED
from .calibrate import FitRow
from .constants import CORE_BYTES
from .predict import ComponentRow, Prediction

_SHORT = {"compute": "C", "HBM": "H", "NeuronLink": "L"}


def tables(prediction: Prediction) -> tuple[TextTable, ...]:
    """All tables of a prediction."""
    phases = dict.fromkeys(row.phase for row in prediction.components)
    return (*(components_table(prediction, phase) for phase in phases), ratios_table(prediction),
            memory_table(prediction), tokens_table(prediction))  # fmt: skip


def components_table(prediction: Prediction, phase: str) -> TextTable:
    """Milliseconds per component and degree of one phase, with the letter of the largest term."""
    rows = [row for row in prediction.components if row.phase == phase]
    return TextTable(
        title=f"{phase}, {_sizes(prediction)}: ms, with the largest term: C compute, H HBM, L NeuronLink ({MODELLED})",
        headers=("component", *(f"tp {tp}" for tp in _degrees(rows))),
        rows=_by_component(rows, lambda row: f"{_ms(row.seconds)} {_SHORT[row.bound]}"),
    )


def ratios_table(prediction: Prediction) -> TextTable:
    """Sums over ranks divided by degree 1's values: operations of the prefill, and weights."""
    rows = [row for row in prediction.components if row.phase == "prefill"]
    return TextTable(
        title=f"sum over ranks / tp 1: operations / weights ({MODELLED})",
        headers=("component", *(f"tp {tp}" for tp in _degrees(rows))),
        rows=_by_component(rows, lambda row: f"{row.flops_ratio:.4g} / {row.weights_ratio:.4g}"),
    )


def memory_table(prediction: Prediction) -> TextTable:
    """GiB per core, beside the HBM of a core."""
    return TextTable(
        title=f"GiB per core, of {CORE_BYTES.value / 2**30:.0f} ({MODELLED})",
        headers=("stored", "tp", "weights", "replicated", "cache", "activations", "total", "fits"),
        rows=tuple(
            (row.storage, str(row.tp), _gib(row.weight_bytes), _gib(row.replicated_bytes), _gib(row.cache_bytes),
             _gib(row.workspace_bytes), _gib(row.total_bytes), "yes" if row.fits else "no")
            for row in prediction.memory
        ),
    )  # fmt: skip


def tokens_table(prediction: Prediction) -> TextTable:
    """Milliseconds per token, and USD per million tokens."""
    return TextTable(
        title=f"ms to the first and per further token, price of 1M tokens; {_sizes(prediction)} ({MODELLED})",
        headers=("stored", "tp", "first ms", "token ms", "at most", "replicas", "USD per 1M"),
        rows=tuple(
            (row.storage, str(row.tp), _ms(row.first_token_s), _ms(row.token_s), _ms(row.token_high_s),
             str(row.replicas), "no fit" if row.dollars_per_million is None else f"{row.dollars_per_million:.2f}")
            for row in prediction.tokens
        ),
    )  # fmt: skip


def fit_table(title: str, rows: Sequence[FitRow]) -> TextTable:
    """Published rows beside the model's milliseconds, with relative errors."""
    left_out = any(row.left_out_error is not None for row in rows)
    headers = ("published row: model, weights, sequence (prompt)", "published ms", "model ms", "error")
    return TextTable(
        title=title,
        headers=(*headers, "error when not fitted to this model") if left_out else headers,
        rows=tuple(
            (row.row.label, f"{row.measured_ms:.2f}", f"{row.model_ms:.2f}", f"{row.error:+.1%}",
             *([f"{row.left_out_error:+.1%}"] if row.left_out_error is not None else []))
            for row in rows
        ),
    )  # fmt: skip


def terminal(prediction: Prediction) -> RenderableType:
    """All tables for a terminal, under a line that says that they are modelled."""
    head = Text(f"{prediction.model} on Trn1: {MODELLED}", style="bold yellow")
    return Group(head, *(table.terminal() for table in tables(prediction)), *(Text(n) for n in ending(prediction)))


def ending(prediction: Prediction) -> tuple[str, ...]:
    """The lines below the tables: notes, and the sources of the numbers."""
    collectives = prediction.measured_collectives or ("published samples of nccom-test (give your own with --nccom)",)
    return (
        *(f"note: {note}" for note in prediction.notes),
        f"collectives: {'; '.join(collectives)}",
        f"price: {prediction.price_per_hour:.2f} USD per hour of a trn1.32xlarge, every group of tp cores busy",
        "'at most' counts the fitted cost per reduction in full at every degree. Sources, fit and errors: "
        "docs/trn1-model.md",
    )


def _by_component(rows: Iterable[ComponentRow], cell: Callable[[ComponentRow], str]) -> tuple[tuple[str, ...], ...]:
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(row.component, []).append(cell(row))
    return tuple((component, *cells) for component, cells in lines.items())


def _degrees(rows: Iterable[ComponentRow]) -> list[int]:
    return list(dict.fromkeys(row.tp for row in rows))


def _sizes(prediction: Prediction) -> str:
    plan = "" if prediction.plan == "tp" else f", plan {prediction.plan}"
    return f"batch {prediction.batch}, {prediction.seq} tokens{plan}"


def _ms(seconds: float) -> str:
    if seconds < 1e-6:
        return "<0.001"
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
