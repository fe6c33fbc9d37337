"""What a run with a fault in it must come to, and the table of what it did."""

from __future__ import annotations

import signal

from injection import ALL, DEGREES, WRITE_KINDS, Fault
from observation import COMPONENTS, GRACE, TIMEOUT, Seen


def complaints(fault: Fault, seen: Seen) -> list[str]:
    """What is not as promised; empty if all is."""
    found = [f"left behind: {', '.join(seen.left)}"] if seen.left else []
    if not seen.struck:
        return [*found, f"the fault did not strike (exit code {seen.code}, {seen.errors[-300:]!r})"]
    allowed = (2 * 10.0 if fault.persists and fault.hangs else TIMEOUT) + GRACE
    if seen.seconds > allowed:
        found.append(f"{seen.seconds:.1f} s, more than {allowed:.0f}")
    expected, least = _promise(fault)
    if seen.code != expected:
        found.append(f"exit code {seen.code} instead of {expected}: {seen.errors[-300:]!r}")
    if seen.kept() < least:
        found.append(f"{seen.kept()} results kept, at least {least} promised")
    if not _is_named(fault, seen):
        found.append(
            f"not named: {[r['reason'] for r in seen.results if r['status'] != 'PASS']} {seen.errors[-300:]!r}"
        )
    return found


def _promise(fault: Fault) -> tuple[int, int]:
    """Exit code, and how many PASS at least: all that the fault could not prevent."""
    if fault.kind in WRITE_KINDS:
        return 2, len(COMPONENTS)
    if fault.strikes_main:
        return (-signal.SIGKILL if fault.kind == "main: SIGKILL" else 130), len(COMPONENTS)
    return 3, len(COMPONENTS) if fault.persists else 2 * len(COMPONENTS) - 1


def _is_named(fault: Fault, seen: Seen) -> bool:
    """A failed result names the rank, or a sentence says what ended the run."""
    if fault.kind == "main: SIGKILL":
        return True
    if fault.strikes_main or fault.kind in WRITE_KINDS:
        words = {"main: SIGTERM": "SIGTERM", "disk full": "No space left", "folder gone": "No such file"}
        return words.get(fault.kind, "interrupted") in seen.errors and "Traceback" not in seen.errors
    bad = [r for r in seen.results if r["status"] != "PASS"]
    status = "TIMEOUT" if fault.hangs and not fault.persists else "CRASH"
    named = all(f"rank {fault.victim}" in r["reason"] or f" {fault.victim};" in r["reason"] for r in bad)
    stacks = not fault.hangs or fault.persists or all("innermost call first" in r["traceback"] for r in bad)
    return bool(bad) and {r["status"] for r in bad} == {status} and named and stacks


def page(seen: dict[Fault, Seen]) -> str:
    """The table as Markdown, one row per kind and moment, one column per degree."""
    wrong = {fault: complaints(fault, one) for fault, one in seen.items()}
    right = sum(not found for found in wrong.values())
    littered = sum(bool(one.left) for one in seen.values())
    ended = [(one.seconds, fault) for fault, one in seen.items() if not fault.hangs and one.struck]
    slowest = max(ended, key=lambda pair: pair[0], default=None)
    lines = [
        "# Faults in the launcher",
        "",
        "Made by `python tests/bench/launcher_faults.py --write docs/launcher-faults.md`, which explains the moments.",
        "",
        f"{len(seen)} of {len(ALL)} faults were put in, {right} ended as promised, {littered} left anything behind "
        "(processes and with them ports, files in shared memory and in TMPDIR, locks).",
    ]
    if slowest:
        seconds, fault = slowest
        lines.append(f"Slowest that is no hang: {seconds:.1f} s ({fault.kind} at {fault.moment}, tp {fault.tp}).")
    lines += [
        f"A hang is found by its timeout: {TIMEOUT:.0f} s for a case, twice 10 s for a start.",
        "",
        "A cell: exit code, seconds from the fault to the end of the last process (other work ran on the machine),",
        "and the results kept that say PASS: 3 at tp 1 and, where ranks can be started afresh, 2 at the degree.",
        "",
        "| fault | moment | " + " | ".join(f"tp {tp}" for tp in DEGREES) + " |",
        "|---|---|" + "---|" * len(DEGREES),
    ]
    for kind, moment in dict.fromkeys((f.kind, f.moment) for f in (*ALL, *seen) if f in seen):
        cells = [cell(Fault(kind, moment, tp), seen, wrong) for tp in DEGREES]
        lines.append(f"| {kind} | {moment} | {' | '.join(cells)} |")
    lines += ["", *(f"- {f.kind} at {f.moment}, tp {f.tp}: {'; '.join(w)}" for f, w in wrong.items() if w)]
    return "\n".join(lines).rstrip() + "\n"


def cell(fault: Fault, seen: dict[Fault, Seen], wrong: dict[Fault, list[str]]) -> str:
    """What became of a fault, in a few words."""
    if fault not in seen:
        return "not run"
    one = seen[fault]
    note = " **wrong**" if wrong[fault] else ""
    return f"{one.code}, {one.seconds:.1f} s, {one.kept()} kept{note}"
