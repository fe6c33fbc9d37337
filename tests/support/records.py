"""Small results and run records, as tests of run.json, tables and reports need them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from tp_harness.report.terminal import summary
from tp_harness.results.result import Check, Gate, Proof, Result, Status
from tp_harness.results.run_record import RunRecord, open_record

OPTIONS = {"model": {"hidden_size": 96}, "degrees": (1, 8), "out": "artifacts"}


def gate(value: float, limit: float = 1e-5, tensor: str = "output.0", kind: str = "rel_L2") -> Gate:
    return Gate(kind=kind, tensor=tensor, value=value, limit=limit, reason="a reason")


def ratio(value: float, limit: float = 1.2, tensor: str = "output.0") -> Gate:
    return gate(value, limit, tensor, "R")


def result(component: str = "mlp", tp: int = 8, status: Status = Status.PASS, **values: Any) -> Result:
    fields: dict[str, Any] = {"backend": "gloo", "dtype": "float32", "layer": 0, "draws": 3, "seed": 7, "reason": ""}
    return Result(component=component, tp=tp, status=status, **(fields | {"log_dir": f"logs/tp{tp}"} | values))


def proof(**values: Any) -> Proof:
    fields: dict[str, Any] = {"primes": (2098127, 1048919), "draws": 2, "bound": 3.2e-6, "typical": 1.1e-12,
                              "margin": 4.1e-4, "margin_of": "the choice of experts in layer 0", "shadow": 6e-16,
                              "coverage": ("30 of 32 experts chosen",)}  # fmt: skip
    return Proof(**(fields | values))


def exact(status: Status = Status.PROVED, tp: int = 8, *, of: Proof | None = None, **values: Any) -> Result:
    """A result in exact arithmetic; `of` is its proof, by default that of `proof`."""
    residues = Check(name="residues", passed=status is not Status.DIFFERENT, detail="output.0 is another function")
    checks = () if status is Status.NOT_PROVED else (residues,)
    return result(tp=tp, status=status, dtype="exact", proof=of or proof(), **({"checks": checks} | values))


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
