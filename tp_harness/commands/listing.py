"""What `tp-harness list` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table

from ..models import families


def components() -> RenderableType:
    """The built-in components and what is sharded in each."""
    table = _table("component", "what is verified")
    for family in families():
        for name, about in family.components.items():
            table.add_row(name, about)
    return table


def backends() -> RenderableType:
    """The backends, and why one cannot run here."""
    from ..backends import BACKENDS  # noqa: PLC0415

    table = _table("backend", "available", "what it cannot see")
    for backend in BACKENDS:
        table.add_row(backend.name, backend.available() or "yes", backend.blind_spots)
    return table


def kernels() -> RenderableType:
    """The NKI kernels: limits, peak memory per partition, and how they were checked."""
    from ..kernels.registry import KERNELS, PEAKS_AT  # noqa: PLC0415

    table = _table("kernel", "limits", "peak SBUF", "peak PSUM")
    for spec in KERNELS:
        table.add_row(spec.name, spec.limits, f"{spec.sbuf_peak_bytes:,} B", f"{spec.psum_peak_banks} banks")
    by_status: dict[str, list[str]] = {}
    for spec in KERNELS:
        by_status.setdefault(spec.status, []).append(spec.name)
    peaks = f"Peaks per partition at {PEAKS_AT}."
    return Group(table, peaks, *(f"{', '.join(names)}: {status}." for status, names in by_status.items()))


def faults() -> RenderableType:
    """The faults that can be put in on purpose, by component."""
    from ..faults import FAULTS, GENERIC, GRAPH, SERVED  # noqa: PLC0415

    table = _table("fault", "component", "layer", "what is wrong")
    for fault in (*FAULTS, *GENERIC, *GRAPH, *SERVED):
        table.add_row(fault.name, fault.component, str(fault.layer), fault.cause)
    return table


def models() -> RenderableType:
    """The presets and their numbers."""
    tables = []
    for family in families():
        table = _table("", *family.presets)
        for field in dataclasses.fields(family.config):
            table.add_row(field.name, *(f"{getattr(preset, field.name):g}" for preset in family.presets.values()))
        tables.append(table)
    return Group(*tables)


def _table(*headers: str) -> Table:
    table = Table(header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header)
    return table


LISTS: dict[str, Callable[[], RenderableType]] = {
    "components": components,
    "faults": faults,
    "backends": backends,
    "kernels": kernels,
    "models": models,
}
