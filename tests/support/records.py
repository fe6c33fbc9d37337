"""Small results and run records, as tests of run.json, tables and reports need them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from tp_harness.report.terminal import summary
from tp_harness.results.result import Gate, Result, Status
from tp_harness.results.run_record import RunRecord, open_record

OPTIONS = {"model": {"hidden_size": 96}, "degrees": (1, 8), "out": "artifacts"}


def gate(value: float, limit: float = 1e-5, tensor: str = "output.0", kind: str = "rel_L2") -> Gate:
    return Gate(kind=kind, tensor=tensor, value=value, limit=limit, reason="a reason")


def ratio(value: float, limit: float = 1.2, tensor: str = "output.0") -> Gate:
    return gate(value, limit, tensor, "R")


def result(component: str = "mlp", tp: int = 8, status: Status = Status.PASS, **values: Any) -> Result:
    fields: dict[str, Any] = {"backend": "gloo", "dtype": "float32", "layer": 0, "draws": 3, "seed": 7, "reason": ""}
    return Result(component=component, tp=tp, status=status, **(fields | {"log_dir": f"logs/tp{tp}"} | values))


def new_record(folder: Path, *results: Result) -> RunRecord:
    record = open_record(
        folder, command="tp-harness verify", options=OPTIONS, backend="gloo", blind_spots="gloo cannot see all"
    )
    for each in results:
        record.add(each)
    return record


def fill_disk_half_way(self: Path, text: str, encoding: str) -> int:
    """Path.write_text on a disk that is full after half the text."""
    with self.open("w", encoding=encoding) as file:
        file.write(text[: len(text) // 2])
    raise OSError(28, os.strerror(28))


def shown(record: RunRecord, width: int = 100) -> list[str]:
    """What a terminal of that width shows of a run."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(summary(record))
    return [line.rstrip() for line in console.export_text().splitlines()]
