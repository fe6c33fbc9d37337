"""The words and numbers of a run that all pages show, without markup."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.dtypes import EXACT
from ..config.options import OF_MODEL
from ..models import is_layered, is_whole
from ..results.result import Control, Gate, Result, Status
from ..results.run_record import RunRecord
from .headline import cell
from .rank_logs import written_logs

# Exit code -> its meaning.
HEADLINES = {
    0: "Every sharded component is the same function as its reference",
    1: "Something differs from the reference",
    3: "A rank crashed, hung or went missing",
    4: "This run proves nothing",
}
WALL_TIME_BACKENDS = ("neuron",)  # elsewhere ranks share the cores of one CPU

Row = tuple[str, int, str]  # component, layer, dtype


def headline(record: RunRecord) -> str:
    """The verdict in one sentence."""
    return (
        HEADLINES[record.exit_code]
        if record.finished
        else "The run was cut short; tp-harness verify --resume goes on with it"
    )


def word(record: RunRecord) -> str:
    """The verdict in one word, for a style or a badge."""
    if not record.finished:
        return "UNFINISHED"
    return {0: "PASS", 1: "MISMATCH", 3: "INCOMPLETE", 4: "VOID"}[record.exit_code]


def counts(results: Sequence[Result]) -> str:
    """`78 PASS, 2 MISMATCH`."""
    numbers = {status: sum(r.status is status for r in results) for status in Status}
    return ", ".join(f"{count} {status.value}" for status, count in numbers.items() if count) or "nothing was run"


def degrees(results: Sequence[Result]) -> list[int]:
    """Every degree of the run, ascending."""
    return sorted({result.tp for result in results})


def components(results: Sequence[Result]) -> list[tuple[str, int]]:
    """Every component and layer, in the order of the run."""
    return list(dict.fromkeys((result.label, result.layer) for result in results))


def dtypes(results: Sequence[Result]) -> list[str]:
    """Every dtype, in the order of the run."""
    return list(dict.fromkeys(result.dtype for result in results))


def matrix(results: Sequence[Result]) -> dict[Row, dict[int, Result]]:
    """Component, layer and dtype -> degree -> result, in the order of the run."""
    rows: dict[Row, dict[int, Result]] = {}
    for result in results:
        rows.setdefault((result.label, result.layer, result.dtype), {})[result.tp] = result
    return rows


def failures(results: Sequence[Result]) -> list[Result]:
    """Everything that did not pass, in the order of the run."""
    return [result for result in results if not result.status.passed]


def measure(result: Result) -> str:
    """The failed checks and the number that a cell shows, "exact" for 0; "" where nothing could be compared."""
    return cell(result, "exact")[1]


def gate_text(gate: Gate) -> str:
    """A number beside its limit, and the limit's reason."""
    return f"{gate.metric} is {gate.value:.3g}, limit {gate.limit:.3g}: {gate.reason}"


def logs(record: RunRecord, result: Result) -> list[tuple[str, str]]:
    """(label, path relative to the run's folder) of each rank log that is not empty; of the wrong ranks first."""
    return [(f"rank {rank}", path) for rank, path in written_logs(record, result)]


# An option in run.json, and its flag.
_FLAGS = (
    ("ep", "--ep"),
    ("cp", "--cp"),
    ("batch", "--batch"),
    ("seq", "--seq"),
    ("seed", "--seed"),
    ("draws", "--draws"),
    ("init", "--init"),
    ("kernels", "--kernels"),
    ("repeats", "--repeats"),
    ("checkpoint", "--checkpoint"),
    ("fault", "--fault"),
    ("timeout", "--timeout"),
)
_LEFT_OUT = {"ep": 0, "cp": 0, "kernels": "torch", "repeats": 0, "timeout": 300.0, "init": "discriminating"}  # defaults


def command(record: RunRecord, result: Result) -> str:
    """The command that runs this row alone again, with the same weights, inputs and draws."""
    options = record.options | {"draws": result.draws}
    words = ["tp-harness", "verify"]
    if options.get("case"):
        words += ["--case", case_of(record, result)]
    else:
        words += ["--component", result.component, "--model", str(options.get("model_name", "tiny"))]
    if result.extent:
        words += ["--depth", str(options.get("depth"))]
    if not options.get("case") and is_layered(result.component):
        words += ["--layer", str(result.layer)]
    words += ["--tp", str(result.tp), "--dtype", result.dtype, "--backend", record.backend]
    for key, flag in _FLAGS:
        value = None if options.get("case") and key in OF_MODEL else options.get(key)
        if value not in (None, "", _LEFT_OUT.get(key)):
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    if options.get("fault_control") is False:
        words.append("--no-fault-control")
    return shlex.join(words)


def case_of(record: RunRecord, found: Result | Control) -> str:
    """The FILE.py:NAME of the Case of a result or control."""
    specs, names = record.options["case"], record.options.get("targets", [])
    named = {tuple(name): spec for name, spec in zip(names, specs, strict=False)}
    return str(named.get((found.component, found.layer), specs[0]))


def control_command(record: RunRecord, control: Control) -> str:
    """The command that puts a control's fault in again."""
    options = record.options
    words = ["tp-harness", "verify", "--fault", control.fault]
    if options.get("case"):
        words += ["--case", case_of(record, control)]
    else:
        words += ["--model", str(options.get("model_name", "tiny"))]
    words += ["--tp", str(control.tp), "--dtype", control.dtype, "--seed", str(options.get("seed", 0))]
    for key in ("batch", "seq"):
        if not options.get("case") and key in options:
            words += [f"--{key}", str(options[key])]
    if options.get("depth") and is_whole(control.component):
        words += ["--depth", str(options["depth"])]
    return shlex.join([*words, "--backend", record.backend])


def wall_time_counts(record: RunRecord) -> bool:
    """Whether wall time measures the cost of a degree: every rank has its own core."""
    return record.backend in WALL_TIME_BACKENDS


def time_note(record: RunRecord) -> str:
    """Sentences on what the times of this run measure."""
    if wall_time_counts(record):
        return "Each rank has a NeuronCore of its own: wall time says what a degree costs."
    cpus = record.environment.get("cpus", "unknown")
    return (
        f"The ranks share the {cpus} cores of one CPU, so wall-clock speed-up means nothing here and none is shown. "
        + _TIME_NOTES.get(record.backend, _CPU_TIME)
        + " For Trn1 see the model, which is not a measurement."
    )


_CPU_TIME = (
    "Per-rank CPU time says how much work sharding leaves each rank; time in collectives is mostly waiting for ranks "
    "that have no core."
)
_TIME_NOTES = {
    "local": "The ranks are threads that take turns: CPU time is each thread's own, collectives are not timed, and "
    "peak memory is that of all ranks together.",
    "xla": "The ranks are virtual cores of one process: XLA computes on threads of its own, so that CPU time per rank "
    "is not known, and peak memory is that of all ranks together.",
}


def seconds(value: float | None) -> str:
    """A time in seconds as text, three digits, in s, ms or us; a dash for None."""
    if value is None:
        return "-"
    if value >= 999.5:
        return f"{value:,.0f} s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 0.9995:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.2f} us" if value else "0 s"


def size(value: float | None) -> str:
    """A number of bytes as text, in B, KiB, MiB or GiB; a dash for None."""
    if value is None:
        return "-"
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            number = value / 1024**power
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
    return f"{value:.0f} B"


def ratio(value: float | None, digits: int = 3) -> str:
    """A ratio as text with `digits` decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def verified(record: RunRecord) -> str:
    """The name of the model, or the specs of the Cases."""
    return ", ".join(record.options.get("case", ())) or str(record.options.get("model_name", "unknown"))


def subject(record: RunRecord) -> str:
    """The model or Cases, rows, tokens and draws of the run, as text."""
    options = record.options
    name = f"{'case' if options.get('case') else 'model'} {verified(record)}"
    sizes = f"batch {options.get('batch', '?')}, {options.get('seq', '?')} tokens" if not options.get("case") else ""
    parts = dict.fromkeys(result.label for result in record.results if result.extent)
    return ", ".join(part for part in (name, *parts, sizes, draws(record)) if part)


def draws(record: RunRecord) -> str:
    """How many draws the results stand for, as "2 draws", or "2 draws (exact: 1)" where exact arithmetic took fewer."""
    most = max((result.draws for result in record.results), default=0)
    exact = max((result.draws for result in record.results if result.dtype == EXACT), default=most)
    return f"{most} draw{'s' if most != 1 else ''}" + (f" ({EXACT}: {exact})" if exact != most else "")


def started(record: RunRecord) -> str:
    """The time when the run began, in UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.started))


def environment(record: RunRecord) -> list[tuple[str, str]]:
    """(name, value) of the machine, the versions, the backend and the command."""
    return [*_flat(record.environment), ("backend", record.backend), ("command", record.command)]


def options(record: RunRecord) -> list[tuple[str, str]]:
    """(name, value) of the resolved options; of a Case, without sizes and others that it brings itself."""
    own = bool(record.options.get("case"))
    kept = {name: value for name, value in record.options.items() if not (own and name in OF_MODEL)}
    return _flat(kept)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", _words(value)))
    return lines


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(" ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for v in value)
    return str(value)
