"""junit.xml: the run for a CI system's test view. A case per result, a suite per component. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from ..results.mutation_score import Trial
from ..results.proof import at_most
from ..results.result import Proof, Result, Status
from ..results.run_record import RunRecord
from . import view
from .failure_text import alike_text, divergence_text, further_text

_ERRORS = {Status.CRASH, Status.TIMEOUT, Status.MISSING, Status.VOID}  # nothing was decided
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def render(record: RunRecord, trials: Sequence[Trial] = ()) -> str:
    """The XML document, times in seconds; `trials` as for report.html: a fault that was missed is a failure."""
    root = ET.Element("testsuites", {"name": "tp-harness", **counts(record.results, trials)})
    by_component: dict[str, list[Result]] = {}
    for result in record.results:
        by_component.setdefault(result.label, []).append(result)
    for component, results in by_component.items():
        attributes = {"name": clean(component), **counts(results)}
        attributes["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.started))
        suite = ET.SubElement(root, "testsuite", attributes)
        for result in results:
            _case(suite, record, result)
    if trials:
        _faults(root, trials)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, record: RunRecord, result: Result) -> None:
    name = f"layer{result.layer}-tp{result.tp}-{result.dtype}"
    attributes = {"classname": clean(result.label), "name": name, "time": f"{_seconds([result]):.3f}"}
    case = ET.SubElement(suite, "testcase", attributes)
    values: dict[str, object] = {"mesh": result.axes} if result.axes else {}
    values |= _proved(result.proof) if result.proof else {}
    if values:
        _properties(case, values)
    child = add_status(case, result)
    if child is not None and result.status is not Status.SKIPPED:
        child.text = clean("\n".join(_details(record, result)))


def _proved(proof: Proof) -> dict[str, object]:
    """What a verdict in exact arithmetic rests on."""
    return {"primes": ", ".join(map(str, proof.primes)), "points": proof.draws, "bound": at_most(proof.bound, 1),
            "smallest margin": f"{proof.margin:.1e}, {proof.margin_of}".rstrip(", "),
            "branches taken": "; ".join(proof.coverage)}  # fmt: skip


def _properties(case: ET.Element, values: Mapping[str, object]) -> None:
    properties = ET.SubElement(case, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": name, "value": clean(str(value))})


def add_status(case: ET.Element, result: Result) -> ET.Element | None:
    """Add the element that says how the result ended, and return it; None, and no element, for a pass."""
    if result.status.passed:
        return None
    if _skipped(result):
        return ET.SubElement(case, "skipped", {"message": clean(result.reason)})
    kind = "error" if result.status in _ERRORS else "failure"
    return ET.SubElement(case, kind, {"type": result.status.value, "message": clean(result.reason)})


def _skipped(result: Result) -> bool:
    return result.status is Status.SKIPPED or result.status.is_open


def _faults(root: ET.Element, trials: Sequence[Trial]) -> None:
    suite = ET.SubElement(root, "testsuite", {"name": "faults", **counts([], trials)})
    for trial in trials:
        name = f"tp{trial.tp}-{trial.dtype}"
        case = ET.SubElement(suite, "testcase", {"classname": f"faults.{clean(trial.fault)}", "name": name})
        if trial.bad:
            reason = clean(trial.reason or "nothing rejected it")
            ET.SubElement(case, "failure", {"type": trial.outcome, "message": reason})


def _details(record: RunRecord, result: Result) -> list[str]:
    lines = [result.reason]
    if result.first_divergence:
        lines.append(f"first wrong tensor: {divergence_text(result.first_divergence)}")
    lines += [f"cause: {cause.name}: {cause.sentence}" for cause in result.diagnosis]
    lines += [f"cause as in float32: {cause.name}: {cause.sentence}" for cause in result.as_float32]
    lines += alike_text(result.alike)
    lines += [line for i, mistake in enumerate(result.further, 2) for line in further_text(mistake, i, result)]
    lines += [result.put_right] if result.put_right else []
    lines += [f"log of {label}: {path}" for label, path in view.logs(record, result)[:1]]
    lines.append(f"repeat: {view.command(record, result)}")
    return [*lines, result.traceback] if result.traceback else lines


def counts(results: Sequence[Result], trials: Sequence[Trial] = ()) -> dict[str, str]:
    """The attributes of a suite: how many results or trials of faults ended how, and the seconds they took."""
    errors = sum(r.status in _ERRORS for r in results)
    skipped = sum(map(_skipped, results))
    failed = sum(not r.status.passed for r in results) - errors - skipped
    failed += sum(trial.bad for trial in trials)
    numbers = {"tests": len(results) + len(trials), "failures": failed, "errors": errors, "skipped": skipped}
    return {name: str(number) for name, number in numbers.items()} | {"time": f"{_seconds(results):.3f}"}


def _seconds(results: Sequence[Result]) -> float:
    """Seconds of wall time of the slowest rank of each task, summed; the dtypes of a task ran together."""
    tasks = {(r.label, r.layer, r.tp): max((rank.wall_s for rank in r.ranks), default=0.0) for r in results}
    return sum(tasks.values())


def clean(text: str) -> str:
    """The text with U+FFFD for each character that XML cannot hold, such as those of terminal escapes."""
    return _NO_XML.sub("\ufffd", text)
