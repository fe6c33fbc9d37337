"""Print what the checks show: `python -m tp_harness.kernels.checks.report [--full]`.

Maximum errors per kernel and degree, rule violations, mutants, times at gpt-oss-20b's sizes, five messages.
--full adds gpt-oss-20b at tp 1 and 2 (4 of 32 experts, 20,000 vocabulary rows), bfloat16 at full size and
the kernels' limits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

import torch
from tp_harness.kernels import compat, registry
from tp_harness.kernels.checks import accuracy, mutants, rule_cases
from tp_harness.kernels.checks.accuracy import AccuracyCase, Measured
from tp_harness.kernels.nki_interpreter import RULES, NkiValidationError

from tp_harness.config.divisibility import TRN1_DEGREES

_MESSAGES = (
    "matmul-moving-513",
    "start-partition-33_at_32",
    "accumulate-nonmatmul-memset",
    "two-psum-inputs-tensor_tensor",
    "bias-tile-a_number",
)


def main(arguments: list[str] | None = None) -> int:
    """Print the report; return 1 if something in it is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also the cases that need minutes")
    full = parser.parse_args(arguments).full
    print(f"{registry.STATUS}\ntoolchain: {compat.TOOLCHAIN.mode} ({compat.TOOLCHAIN.reason})\n")
    held = [
        print_errors(full),
        print_violations(),
        print_mutants(),
        print_full_size(full),
    ]
    return 0 if all(held) else 1


def print_errors(full: bool) -> bool:
    """Print the maximum error per kernel and degree, in both types, of tiny (and of gpt-oss-20b)."""
    held = True
    for dtype in (torch.float32, torch.bfloat16):
        cases = accuracy.tiny_cases(dtype) + accuracy.edge_cases(dtype)
        if full:
            cases += accuracy.full_size_cases(dtype, *TRN1_DEGREES)
        measured = [accuracy.measure(case) for case in cases]
        bfloat16 = dtype is torch.bfloat16
        unit = "bfloat16 units at max |y|" if bfloat16 else "max |error| / max |y|"
        print(f"{dtype}: {unit}, {len(measured)} cases" + (", gpt-oss-20b included" if full else ""))
        print_table(measured, bfloat16=bfloat16)
        worst = max(item.ulps if bfloat16 else item.error for item in measured)
        limit = accuracy.BFLOAT16_ULPS if bfloat16 else accuracy.FLOAT32_LIMIT
        print(f"worst {worst:.2g}, limit {limit:.2g}\n")
        held = held and worst <= limit
    return held


def print_table(measured: Iterable[Measured], *, bfloat16: bool) -> None:
    """Print one row per kernel, one column per degree."""
    worst: dict[tuple[str, int], float] = {}
    for item in measured:
        key = (item.case.kernel, item.case.tp)
        worst[key] = max(worst.get(key, 0.0), item.ulps if bfloat16 else item.error)
    print(f"{'kernel':16}" + "".join(f"{f'tp {tp}':>10}" for tp in TRN1_DEGREES))
    for name in registry.names():
        cells = (worst[name, tp] for tp in TRN1_DEGREES)
        print(f"{name:16}" + "".join(f"{cell:>10.2f}" if bfloat16 else f"{cell:>10.1e}" for cell in cells))


def print_violations() -> bool:
    """Print how many seeded violations were rejected by the right rule, and five messages."""
    rejected = accepted = 0
    for case in rule_cases.CASES:
        error = rule_cases.outcome(case.bad, case.target)
        rejected += error is not None and error.rule == case.rule
        accepted += rule_cases.outcome(case.good, case.good_target or case.target) is None
    total = len(rule_cases.CASES)
    print(f"rules: {len(RULES)}; seeded violations: {total}, rejected by their rule: {rejected}")
    print(f"the same code without the violation: {total}, accepted: {accepted}\n")
    for case in rule_cases.CASES:
        if case.id in _MESSAGES:
            print(f"{rule_cases.outcome(case.bad, case.target)}\n")
    return rejected == accepted == total


def print_mutants() -> bool:
    """Print how many mutants of each file were killed, and the survivors."""
    verdicts = list(mutants.judge_all())
    for module in dict.fromkeys(item.mutant.module for item in verdicts):
        own = [item for item in verdicts if item.mutant.module == module]
        rules = sum(isinstance(item.notice, NkiValidationError) for item in own)
        killed = sum(item.killed for item in own)
        print(f"mutants of {module:12} {killed} of {len(own)} killed, {rules} of them by a rule")
    survivors = [item.mutant.id for item in verdicts if not item.killed]
    print(f"mutants: {len(verdicts)}, killed: {len(verdicts) - len(survivors)}\n" + "\n".join(survivors))
    return not survivors


def print_full_size(full: bool) -> bool:
    """Print time and memory of every kernel at gpt-oss-20b's sizes per rank."""
    cases: list[AccuracyCase] = accuracy.full_size_cases(torch.float32, 8, 32)
    if full:
        cases += accuracy.limit_cases()
    start, slowest = time.perf_counter(), 0.0
    print(f"{'case':58}{'wall s':>8}{'CPU s':>7}{'error':>9}{'SBUF':>9}{'PSUM':>5}{'instructions':>13}")
    for case in cases:
        item = accuracy.measure(case)
        memory = ""
        if item.usage is not None:
            usage = item.usage
            memory = f"{usage.sbuf_peak_bytes:>9,}{usage.psum_peak_banks:>5}{usage.num_instructions:>13,}"
        print(f"{case.id:58}{item.seconds:>8.2f}{item.cpu_seconds:>7.2f}{item.error:>9.1e}{memory}")
        slowest = max(slowest, item.cpu_seconds if case.model == "gpt-oss-20b" else 0.0)
    print(f"slowest of gpt-oss-20b: {slowest:.2f} s of CPU")
    print(f"all, with their oracles: {time.perf_counter() - start:.1f} s")
    return slowest < 10.0


if __name__ == "__main__":
    raise SystemExit(main())
