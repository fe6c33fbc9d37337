"""Results and runs for `tp-harness compare`, equal but for what a test changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tp_harness.results.result import Check, Collective, Forwards, Gate, RankRecord, Result, Status
from tp_harness.results.run_record import RunRecord

MIB = 1 << 20
CALL = Collective(kind="all_reduce", group_size=2, shape=(2, 40, 96), dtype="float32", bytes=30720)
ERROR = Gate(kind="rel_L2", tensor="output.0", value=2e-7, limit=1e-6, reason="a reason")
RATIO = Gate(kind="R", tensor="output.0", value=1.0, limit=1.2, reason="a reason")
TIMES = (1.00e-3, 1.02e-3, 0.98e-3, 1.01e-3, 0.99e-3)


def rank(number: int, **values: Any) -> RankRecord:
    fields: dict[str, Any] = {"core": "cpu", "wall_s": 1.0, "cpu_s": 1.0, "weight_bytes": 5000, "collectives": (CALL,)}
    fields |= {"begin_bytes": 300 * MIB, "peak_bytes": 340 * MIB, "flops": 1000}
    forwards = Forwards(wall_s=TIMES, cpu_s=TIMES, warm=True)
    return RankRecord(rank=number, **(fields | {"forwards": forwards} | values))


def result(**values: Any) -> Result:
    fields: dict[str, Any] = {"component": "mlp", "tp": 2, "backend": "gloo", "dtype": "float32", "layer": 0}
    fields |= {"draws": 1, "seed": 0, "status": Status.PASS, "reason": "", "gates": (ERROR, RATIO)}
    fields |= {"checks": (Check(name="schedule", passed=True, detail=""),), "ranks": (rank(0), rank(1))}
    return Result(**(fields | values))


def record(*results: Result, **values: Any) -> RunRecord:
    options = {"model": {"hidden_size": 96}, "batch": 2, "seq": 40, "seed": 0, "draws": 1, "init": "discriminating",
               "checkpoint": "", "case": [], "kernels": "torch", "out": "artifacts"}  # fmt: skip
    options |= values.pop("options", {})
    environment = {"platform": "Linux", "cpus": 2, "packages": {"torch": "2.13.0"}} | values.pop("environment", {})
    fields: dict[str, Any] = {"folder": Path("run"), "command": "", "backend": "gloo", "blind_spots": ""}
    fields |= {"finished": True, "results": list(results or (result(),))}
    return RunRecord(options=options, environment=environment, **(fields | values))


def on_ranks(**values: Any) -> Result:
    return result(ranks=(rank(0, **values), rank(1, **values)))


def timed(*seconds: float, warm: bool = True) -> Result:
    return on_ranks(forwards=Forwards(wall_s=seconds, cpu_s=seconds, warm=warm))
