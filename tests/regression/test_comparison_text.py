"""The words of a comparison: markdown and terminal say every difference, worse before better."""

from __future__ import annotations

import io
from dataclasses import replace

from compared import TIMES, record, result, timed
from rich.console import Console

from tp_harness.regression.comparison import Comparison, compare
from tp_harness.regression.text import markdown, terminal
from tp_harness.results.result import Status


def comparison() -> Comparison:
    worse = result(status=Status.MISMATCH, reason="replicas: rank 1 holds\nother bits | than rank 0")
    many = [result(component=f"only{i}") for i in range(7)]
    faster = replace(timed(*(t / 2 for t in TIMES)), component="rope")
    before = record(result(), result(component="rope"), *many, run_id="A")
    return compare(before, record(worse, faster, environment={"python": "3.13"}, run_id="B"))


def test_the_markdown_says_it_all() -> None:
    only = ", ".join(f"only{i} layer 0 tp 2 float32" for i in range(5))
    assert (
        markdown(comparison())
        == f"""\
## 1 regression and 1 improvement in 2 rows that both runs have

`A` -> `B`

- python: not said -> 3.13
- only in the run before: {only} and 2 more

### worse

| row | kind | what | before | after | why |
| --- | --- | --- | --- | --- | --- |
| mlp layer 0 tp 2 float32 | verdict | status | PASS | MISMATCH | replicas: rank 1 holds other bits \\| than rank 0 |

### better

| row | kind | what | before | after | why |
| --- | --- | --- | --- | --- | --- |
| rope layer 0 tp 2 float32 | latency | CPU time of all ranks | 2 ms | 1 ms | \
more than the noise of 0.5 ms (5 and 5 repeats) |
"""
    )


def test_the_terminal_says_differences_first_and_the_sum_last() -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(terminal(comparison()))
    lines = [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]  # StringIO
    assert lines[:2] == ["A -> B", "python: not said -> 3.13"]
    assert lines.index("worse") < lines.index("better")
    assert lines[-2] == "mlp layer 0 tp 2 float32, status: replicas: rank 1 holds other bits | than rank 0"
    assert lines[-1] == "1 regression and 1 improvement in 2 rows that both runs have"
    assert markdown(compare(record(), record())).startswith("## no regressions and no improvements in 1 row that")
