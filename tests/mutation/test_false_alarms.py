"""Right code is not rejected, and the count of false alarms comes with its bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tp_harness.config.dtypes import FLOATS
from tp_harness.config.options import Options, resolve
from tp_harness.models.gpt_oss.modules.norm import NeuronGPTOSSRMSNorm
from tp_harness.mutation import false_alarms
from tp_harness.mutation.false_alarms import (
    CleanRun,
    clean_draws,
    clean_table,
    run_draws,
    upper_bound,
    without_whole_model,
)
from tp_harness.results.result import Status


@pytest.mark.parametrize(
    ("alarms", "count", "bound"),
    [
        (0, 300, 1 - 0.05 ** (1 / 300)),
        (0, 1, 0.95),
        (1, 10, 0.3942),  # tables of the F distribution
        (2, 20, 0.2826),
        (3, 3, 1.0),
    ],
)
def test_the_upper_bound_is_clopper_and_pearson_s(alarms: int, count: int, bound: float) -> None:
    assert upper_bound(alarms, count) == pytest.approx(bound, abs=5e-5)


def test_draws_cover_components_degrees_and_awkward_inputs() -> None:
    options = resolve(Options())
    draws = clean_draws(options, 400)
    assert len({draw.seed for draw in draws}) == 400
    assert {draw.targets[0] for draw in draws} == set(options.targets)
    assert {draw.degrees[0] for draw in draws} == {1, 2, 8, 32}
    assert {(draw.batch, draw.seq) for draw in draws} == {(1, 1), (2, 16), (1, 17), (3, 11), (2, 40)}
    both = {(draw.targets, draw.degrees, draw.batch, draw.seq, draw.init) for draw in draws}
    assert len(both) == 400, "every combination with either kind of weights"
    assert clean_draws(options, 400) == draws
    large = without_whole_model(resolve(Options(model="gpt-oss-20b")))
    assert "transformer" not in {name for name, _ in large.targets}
    assert without_whole_model(options) == options


def test_right_code_passes_and_wrong_code_is_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    options = resolve(Options(components=("rmsnorm", "mlp"), degrees=(1, 8), dtypes=FLOATS))
    draws = clean_draws(options, 20)
    assert [run.alarm for run in run_draws(draws)] == [""] * 40
    monkeypatch.setattr(NeuronGPTOSSRMSNorm, "forward", lambda self, x: x.clone())
    alarms = [run.alarm for run in run_draws(draws[:2])]
    assert all(alarm.startswith("MISMATCH: ") for alarm in alarms)
    monkeypatch.setattr(NeuronGPTOSSRMSNorm, "forward", lambda self, x: 1 // 0)
    assert "ZeroDivisionError" in run_draws(draws[:1])[0].alarm


def test_the_smallest_input_passes_in_bfloat16() -> None:
    """One token of 96 features, whose ratio of errors has been 1.24 by chance (seed 11)."""
    options = resolve(Options(components=("transformer_block",), degrees=(2,), layers=(0,), batch=1, seq=1, draws=1))
    options = replace(options, seed=11, init="tied", dtypes=FLOATS)
    assert [run.alarm for run in run_draws([options])] == ["", ""]
    assert torch.get_num_threads() == 1, "one core per process"


def test_the_table_counts_draws_not_verdicts() -> None:
    of = {"component": "mlp", "layer": 0, "tp": 2, "batch": 1, "seq": 1, "init": "tied"}
    runs = [CleanRun(**of, dtype=d, seed=s, alarm="x" * (s == 3)) for s in range(4) for d in ("float32", "bfloat16")]
    assert clean_table(runs).rows[0] == ("all", "4", "1", f"{upper_bound(1, 4):.2%}")
    assert [row[0] for row in clean_table(runs).rows] == [
        "all",
        "float32",
        "bfloat16",
        "tp 2",
        "1 x 1 tokens",
        "init tied",
    ]


def test_what_was_not_proved_is_counted_apart_and_is_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    options = resolve(Options(components=("rmsnorm",), degrees=(1,), dtypes=("float32",)))
    found = {"status": Status.NOT_PROVED, "reason": "a tie"}
    monkeypatch.setattr(false_alarms, "judge", lambda evidence, blank: replace(blank, **found))
    [run] = run_draws(clean_draws(options, 1))
    assert (run.alarm, run.open) == ("", "NOT PROVED: a tie")
    table = clean_table([run, replace(run, seed=run.seed + 1, open="")])
    assert (table.headers[-1], table.rows[0]) == ("not proved", ("all", "2", "0", "77.64%", "1"))
    assert "not proved" not in clean_table([replace(run, open="")]).headers
    found["status"] = Status.DIFFERENT
    assert run_draws(clean_draws(options, 1))[0].alarm == "DIFFERENT: a tie"
